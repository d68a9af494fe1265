"""RegionCLIP's loss against a computation box by box and class by class."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from densedet.clip import ClassEmbeddings
from densedet.errors import ConfigError, DatasetError
from densedet.modeling.meta_arch.region_clip import RegionCLIP, draw_classes
from densedet.regions.crops import crop_and_resize, normalise
from densedet.vocabulary import Vocabulary

SIZE = 64
VOCABULARY = Vocabulary.parse(
    ";".join(f"c{i},synonym{i}" if i % 3 == 0 else f"c{i}" for i in range(30))
)


def embed(vocabulary):
    """Random unit vectors, one a synonym, the same at every call."""
    generator = torch.Generator().manual_seed(7)
    vectors = torch.randn(len(vocabulary.synonyms), 24, generator=generator)
    groups = torch.tensor(vocabulary.groups)
    return ClassEmbeddings(F.normalize(vectors, dim=1), groups, torch.zeros(24))


def sample(height, width, boxes, labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
        "regions": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "region_labels": torch.tensor(labels, dtype=torch.int64),
        "file_name": f"{seed}.jpg",
        "height": height,
        "width": width,
    }


@pytest.fixture
def samples():
    boxes = [[0, 0, 40, 30], [10.5, 20, 80, 60], [3, 3, 9, 50]]
    return [
        sample(60, 80, boxes, [4, 9, 4], seed=1),
        sample(50, 30, [], [], seed=2),
        sample(100, 90, [[5, 40, 88, 99]], [0], seed=3),
    ]


@pytest.fixture
def make_model(make_visual):
    def make(kind="b16", **options):
        options = {"student_size": SIZE, "trainable": 4, "negatives": 10, **options}
        return RegionCLIP(make_visual(kind), embed, VOCABULARY, **options).train()

    return make


def by_hand(model, samples, classes, scale):
    """Binary cross-entropy of every box and class, in float64."""
    embeddings = embed(VOCABULARY)
    total, count = 0.0, 0
    for one in samples:
        whole = torch.tensor([[0, 0, one["width"], one["height"]]])
        pixels = crop_and_resize([one["image"]], [whole], SIZE, "corner")
        visual = model.student
        dense = visual(normalise(pixels, visual.pixel_mean, visual.pixel_std)).dense.double()
        factor = SIZE / max(one["width"], one["height"])
        for box, label in zip(one["regions"], one["region_labels"], strict=True):
            region = roi_align(dense, [box[None].double() * factor], 1, 1 / visual.stride, -1, True)
            region = region.flatten() / region.norm()
            count += 1
            for c in classes.tolist():
                rows = embeddings.vectors[embeddings.groups == c].double()
                x = scale * max(float(row @ region) for row in rows)
                total += math.log1p(math.exp(-x if c == label else x))
    return total / count


@pytest.mark.parametrize("kind", ["b16", "resnet"])
def test_the_loss(make_model, samples, kind):
    model = make_model(kind, logit_scale=8.0)
    torch.manual_seed(5)
    loss = model(samples)["loss_region_clip"]
    torch.manual_seed(5)
    classes = draw_classes(torch.tensor([4, 9, 4, 0]), 30, 10)
    with torch.no_grad():
        expected = by_hand(model, samples, classes, 8.0)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.manual_seed(6)
    assert abs(model(samples)["loss_region_clip"].item() - expected) > 1e-3  # of other classes
    torch.manual_seed(5)
    assert model(samples)["loss_region_clip"].item() == pytest.approx(loss.item(), rel=1e-6)


def test_what_trains(make_model, samples):
    model = make_model(trainable=2)
    start = {n: p.clone() for n, p in model.state_dict().items()}
    model(samples)["loss_region_clip"].backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    blocks = ("student.tower.transformer.resblocks.2.", "student.tower.transformer.resblocks.3.")
    assert trained and all(name.startswith(blocks) for name in trained)
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert not model.student.training and not model.teacher.training
    assert not any(name.endswith(("vectors", "groups")) for name in start)  # not in checkpoints
    for name, value in model.student.state_dict().items():
        assert torch.equal(value, model.teacher.state_dict()[name])


def test_a_batch_without_boxes_has_loss_zero_and_gradients_zero(make_model, samples):
    model = make_model()
    loss = model([samples[1]])["loss_region_clip"]
    loss.backward()
    assert loss.item() == 0
    gradients = [p.grad for p in model.student.parameters() if p.requires_grad]
    assert gradients and all(g is not None and not g.any() for g in gradients)


def test_buffers_have_their_sizes_without_a_label_too(make_model, samples):
    """Processes share them before every step; one of them may have no label yet."""
    model = make_model()
    model([samples[1]])
    assert model.vectors.shape == (len(VOCABULARY.synonyms), 24)
    assert model.groups.tolist() == list(VOCABULARY.groups)


def test_boxes_without_a_label_do_not_count(make_model, samples):
    model = make_model()
    torch.manual_seed(5)
    expected = model(samples)["loss_region_clip"].item()
    for one in samples:
        one["regions"] = torch.cat([torch.tensor([[0.0, 0, 9, 9]]), one["regions"]])
        one["region_labels"] = torch.cat([torch.tensor([-1]), one["region_labels"]])
    torch.manual_seed(5)
    assert model(samples)["loss_region_clip"].item() == pytest.approx(expected, rel=1e-6)


def test_the_students_image_of_the_loader(make_model, samples):
    model = make_model()
    torch.manual_seed(5)
    expected = model(samples)["loss_region_clip"].item()
    for one in samples:
        whole = torch.tensor([[0, 0, one["width"], one["height"]]])
        image = one.pop("image")
        one["student"] = crop_and_resize([image], [whole], SIZE, "corner")[0]
    torch.manual_seed(5)
    assert model(samples)["loss_region_clip"].item() == pytest.approx(expected, rel=1e-6)


def test_low_precision_computes_logits_in_fp32(make_model, samples):
    model = make_model()
    torch.manual_seed(5)
    exact = model(samples)["loss_region_clip"].item()
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(samples)["loss_region_clip"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("name", ["teacher", "teacher_cache"])
def test_there_is_no_teacher_to_choose(make_model, name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        make_model(**{name: None})


def test_samples_without_labels(make_model, samples):
    del samples[0]["region_labels"]
    with pytest.raises(ConfigError, match="needs the labels of the boxes"):
        make_model()(samples)


def test_a_label_outside_the_vocabulary(make_model, samples):
    samples[2]["region_labels"][0] = 30
    with pytest.raises(DatasetError, match=r"3\.jpg has the label 30, the vocabulary has 30 "):
        make_model()(samples)


def test_classes_that_occur_come_first_then_others_once():
    torch.manual_seed(0)
    labels = torch.tensor([7, 2, 7, 19])
    seen = set()
    for _ in range(200):
        classes = draw_classes(labels, 20, 6).tolist()
        assert classes[:3] == [2, 7, 19] and len(set(classes)) == len(classes) == 6
        seen |= set(classes)
    assert seen == set(range(20))


def test_no_cut_if_more_classes_occur_and_no_more_than_there_are():
    labels = torch.arange(9)
    assert draw_classes(labels, 20, 4).tolist() == list(range(9))
    assert sorted(draw_classes(labels[:2], 5, 100).tolist()) == list(range(5))
