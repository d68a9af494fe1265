"""CLIPSelf: what trains, what the loss is, and that its ways to get crops agree."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from densedet.errors import CheckpointError, ConfigError
from densedet.modeling.meta_arch import CLIPSelf
from densedet.regions.crops import crop_and_resize, normalise, whole_image

KINDS = ["b16", "l14", "resnet"]
SIZES = {"b16": 96, "l14": 84, "resnet": 96}


@pytest.fixture
def samples():
    """Two pictures of different sizes with three and two regions."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for number, (height, width, count) in enumerate([(60, 90, 3), (77, 50, 2)]):
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        side = 8 + torch.rand(count, 2, generator=generator) * torch.tensor([30.0, 25.0])
        boxes = torch.cat([corner, torch.minimum(corner + side, torch.tensor([width, height]))], 1)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        found.append(
            {
                "image": image,
                "regions": boxes,
                "crop_rectangles": boxes.round().long(),
                "height": height,
                "width": width,
                "image_id": number,
                "file_name": f"pictures/{number}.jpg",
            }
        )
    return found


def with_pixels(sample, student_size, crop_size):
    """The sample as a RegionMapper with pil_sizes makes it."""
    image = [sample["image"]]
    student = crop_and_resize(image, [whole_image(*image)], student_size, "corner", "pil")[0]
    crops = crop_and_resize(image, [sample["crop_rectangles"]], crop_size, "centre", "pil")
    made = {**sample, "student": student, "crops": crops}
    del made["image"]
    return made


@pytest.fixture
def make_model(make_visual):
    def make(kind="b16", **options):
        options = {"student_size": SIZES[kind], "trainable": 2, **options}
        return CLIPSelf(make_visual(kind), **options).train()

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_one_minus_the_mean_cosine_of_roi_align_and_crops(make_model, samples, kind):
    model = make_model(kind)
    with torch.no_grad():
        for parameter in model.student.parameters():  # else both towers are the same
            parameter.add_(0.02 * torch.randn_like(parameter))
    statistics = model.student.pixel_mean, model.student.pixel_std
    cosines = []
    for sample in samples:
        picture = crop_and_resize(
            [sample["image"]], [whole_image(sample["image"])], SIZES[kind], "corner", "pil"
        )
        dense = model.student(normalise(picture, *statistics), pooled=False).dense
        scale = SIZES[kind] / max(sample["height"], sample["width"])
        boxes = [sample["regions"] * scale]
        pooled = roi_align(dense, boxes, 1, 1 / model.student.stride, -1, True).flatten(1)
        crops = crop_and_resize(
            [sample["image"]], [sample["crop_rectangles"]], model.crop_size, "centre", "pil"
        )
        cosines.append(
            F.cosine_similarity(pooled, model.teacher.embed_images(normalise(crops, *statistics)))
        )
    loss = model(samples)["loss_cosine"]
    assert loss.requires_grad
    torch.testing.assert_close(loss, 1 - torch.cat(cosines).mean(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_unlocked_gets_gradients(make_model, samples, kind):
    model = make_model(kind)
    model(samples)["loss_cosine"].backward()
    assert not any(p.requires_grad for p in model.teacher.parameters())
    trained = {n for n, p in model.student.named_parameters() if p.requires_grad}
    assert trained and len(trained) < len(list(model.student.parameters()))
    touched = {n for n, p in model.student.named_parameters() if p.grad is not None}
    assert touched <= trained
    # the attention pool of a ResNet gives no gradient to q and k on the value path
    assert all("q_proj" in n or "k_proj" in n for n in trained - touched)


def test_training_mode_never_reaches_the_towers(make_model):
    model = make_model("resnet")
    assert model.training and not any(m.training for m in model.student.modules())
    assert not any(m.training for m in model.teacher.modules())
    assert not model.eval().training


def test_teacher_is_a_copy_that_stays(make_model, samples):
    model = make_model()
    before = copy.deepcopy(model.teacher.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    first = model(samples)["loss_cosine"]
    first.backward()
    optimizer.step()
    assert model(samples)["loss_cosine"] != first
    assert all(torch.equal(v, before[n]) for n, v in model.teacher.state_dict().items())


def test_pixels_of_the_loader_and_of_the_device_give_the_same_loss(make_model, samples):
    model = make_model()
    made = [with_pixels(sample, SIZES["b16"], model.crop_size) for sample in samples]
    expected = model(made)["loss_cosine"]
    torch.testing.assert_close(model(samples)["loss_cosine"], expected, rtol=0, atol=1e-4)
    assert model.teacher_cache is None


def test_cached_teacher_embeddings_are_those_of_the_teacher(make_model, samples, tmp_path):
    expected = make_model()(samples)["loss_cosine"]
    first = make_model(teacher_cache=str(tmp_path / "cache"))
    torch.testing.assert_close(first(samples)["loss_cosine"], expected)

    second = make_model(teacher_cache=str(tmp_path / "cache"))
    second.teacher.embed_images = None  # it would fail if the teacher were asked again
    torch.testing.assert_close(second(samples)["loss_cosine"], expected)


def test_only_the_rectangles_that_are_not_known_are_embedded(make_model, samples, tmp_path):
    expected = make_model()._teacher_embeddings(samples)
    model = make_model(teacher_cache=str(tmp_path / "cache"))
    embed, counts = model.teacher.embed_images, []
    model.teacher.embed_images = lambda crops: counts.append(len(crops)) or embed(crops)
    # of the first picture rectangles 1 and 2, then all three; of the second all, then none
    drawn = [{**samples[0], "crop_rectangles": samples[0]["crop_rectangles"][1:]}, samples[1]]
    first = model._teacher_embeddings(drawn)
    again = model._teacher_embeddings(samples)
    nothing = {**samples[1], "crop_rectangles": samples[1]["crop_rectangles"][:0]}
    torch.testing.assert_close(model._teacher_embeddings([nothing, samples[0]]), expected[:3])
    assert counts == [4, 1]
    torch.testing.assert_close(first, expected[1:])
    torch.testing.assert_close(again, expected)


def test_cached_crops_of_the_loader(make_model, samples, tmp_path):
    made = [with_pixels(sample, SIZES["b16"], 64) for sample in samples]
    model = make_model(teacher_cache=str(tmp_path / "cache"))
    rows = {name: made[0][name][:1] for name in ("crops", "crop_rectangles")}
    model._teacher_embeddings([{**made[0], **rows}])
    expected = make_model()._teacher_embeddings(made)
    torch.testing.assert_close(model._teacher_embeddings(made), expected)


def test_a_cache_of_another_precision_is_not_used(make_model, samples, tmp_path):
    folder = str(tmp_path / "cache")
    make_model(teacher_cache=folder)(samples)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(CheckpointError, match="with other settings"),
    ):
        make_model(teacher_cache=folder)(samples)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((80, 64), "student pixels of side 80, but model.student_size is 96"),
        ((96, 48), "crops pixels of side 48, but model.crop_size is 64"),
    ],
)
def test_pixels_of_the_loader_of_another_size(make_model, samples, sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_model()([with_pixels(sample, *sizes) for sample in samples])


def test_crops_of_the_loader_have_a_padding_of_their_own(make_model, samples):
    made = [with_pixels(sample, SIZES["b16"], 64) for sample in samples]
    with pytest.raises(ConfigError, match="crop_padding='stretch', but RegionMapper.pil_sizes"):
        make_model(crop_padding="stretch")(made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_size": 100}, "model.student_size=100 must be a multiple of 16, the stride of"),
        ({"crop_size": 40}, "model.crop_size=40 must be a multiple of 16, the stride of the teach"),
        ({"crop_size": 0}, "model.crop_size=0 must be a multiple of 16"),
        ({"crop_padding": "left"}, "model.crop_padding='left': choose from centre, corner, str"),
        ({"crop_backend": "gpu"}, "model.crop_backend='gpu': choose from auto, device, pil"),
        ({"modes": ["boxes", "rois"]}, "no region mode 'rois'"),
        ({"kind": "resnet", "modes": ["boxes_values"]}, "'boxes_values' is not defined for"),
    ],
)
def test_wrong_arguments_are_found_before_the_training(make_model, options, message):
    with pytest.raises(ConfigError, match=message):
        make_model(**options)


def test_a_cache_of_another_teacher_is_not_used(make_model, samples, tmp_path):
    folder = str(tmp_path / "cache")
    make_model(teacher_cache=folder)(samples)
    other = make_model(teacher_cache=folder)
    with torch.no_grad():
        other.teacher.tower.proj.add_(1.0)
    with pytest.raises(CheckpointError, match="made by another model"):
        other(samples)


def test_checkpointing_changes_nothing(make_model, samples):
    plain, saving = make_model(), make_model(checkpointing=True)
    losses = [m(samples)["loss_cosine"] for m in (plain, saving)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    for one, two in zip(plain.student.parameters(), saving.student.parameters(), strict=True):
        assert (one.grad is None) is (two.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=1e-7)


def test_evaluation_embeds_regions(make_model, samples):
    model = make_model(modes=("boxes", "crops")).eval()
    with torch.no_grad():
        found = model(samples)
    assert [sorted(f) for f in found] == [["boxes", "crops"]] * 2
    assert found[0]["boxes"].shape == (3, model.student.embed_dim)
    assert found[1]["crops"].shape == (2, model.student.embed_dim)
