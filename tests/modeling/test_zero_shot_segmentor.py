"""Segmentation from the dense map alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY

from densedet.errors import ConfigError
from densedet.modeling.meta_arch import ZeroShotSegmentor
from densedet.modeling.sliding_window import windows
from densedet.vocabulary import Vocabulary

WORDS = Vocabulary.parse("sky,cloud;road;tree")


@pytest.fixture
def make_model(make_visual, embedder):
    def make(kind="b16", vocabulary=WORDS, **kwargs):
        settings = {"window": None, "window_stride": None, **kwargs}
        return ZeroShotSegmentor(
            visual=make_visual(kind), vocabulary=vocabulary, embedder=embedder, **settings
        ).eval()

    return make


def record(rows, columns, seed=0, **extra):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8, generator=generator)
    return {"image": image, **extra}


def normalised(model, one):
    return ((one["image"] - model.pixel_mean) / model.pixel_std)[None]


def logits_by_hand(model, images, embeddings, path="value"):
    """100 times the cosine of every cell with the closest synonym, resized bilinearly."""
    dense = model.visual.dense_map(images, path)
    vectors, groups = embeddings.vectors, embeddings.groups
    columns = [
        torch.einsum("bdyx,pd->bpyx", dense, vectors[groups == k]).amax(dim=1)
        for k in range(int(groups.max()) + 1)
    ]
    size = images.shape[-2:]
    return F.interpolate(100 * torch.stack(columns, 1), size, mode="bilinear", align_corners=False)


def test_registered_under_its_class_name():
    assert META_ARCH_REGISTRY.get("ZeroShotSegmentor") is ZeroShotSegmentor


@pytest.mark.parametrize("path", ["value", "tokens", "values"])
@pytest.mark.parametrize("kind", ["b16", "l14"])
def test_logits_against_a_computation_by_hand(make_model, embedder, kind, path):
    model = make_model(kind, path=path)
    side = 4 * model.visual.stride
    one = record(side, 2 * side)
    (found,) = model([one])
    expected = logits_by_hand(model, normalised(model, one), embedder(WORDS), path)[0]
    assert found.keys() == {"sem_seg"} and expected.std() > 1
    torch.testing.assert_close(found["sem_seg"].full(), expected, rtol=0, atol=1e-3)


def test_windows_are_averaged_and_then_resized(make_model, embedder, slide_by_hand):
    model = make_model(window=48, window_stride=32)
    one = record(80, 100, height=40, width=50)
    found = model([one])[0]["sem_seg"].full()
    assert len(windows((80, 100), 48, 32)) == 2 * 3
    embeddings = embedder(WORDS)

    def predict(part):
        return logits_by_hand(model, part, embeddings)

    logits = slide_by_hand(normalised(model, one), predict, 48, 32)
    expected = F.interpolate(logits, (40, 50), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", ["b16", "l14", "resnet"])
def test_any_size_and_any_batch(make_model, kind):
    """Padded with 0 after normalisation to the stride; pictures do not touch each other."""
    model = make_model(kind)
    batch = [record(33, 70), record(50, 40, seed=1, height=100, width=81), record(1, 97, seed=2)]
    together = model(batch)
    sizes = [(3, 33, 70), (3, 100, 81), (3, 1, 97)]
    assert [tuple(x["sem_seg"].shape) for x in together] == sizes
    for one, expected in zip(batch, together, strict=True):
        assert torch.equal(model([one])[0]["sem_seg"].full(), expected["sem_seg"].full())
    assert model([]) == []
    stride = model.visual.stride
    image = normalised(model, batch[0])
    rows, columns = -(-33 // stride) * stride, -(-70 // stride) * stride
    padded = F.pad(image, (0, columns - 70, 0, rows - 33))
    expected = logits_by_hand(model, padded, model.embedder(WORDS))[0, :, :33, :70]
    torch.testing.assert_close(together[0]["sem_seg"].full(), expected, rtol=0, atol=1e-3)


def test_the_vocabulary_is_chosen_at_run_time(make_model, embedder):
    model = make_model()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    one = record(64, 64)
    first = model([one])[0]["sem_seg"].full()
    model([one])
    assert embedder.asked == [WORDS], "embedded once"
    turned = Vocabulary(WORDS.categories[::-1])
    model.set_vocabulary(turned)
    assert model.vocabulary is turned
    torch.testing.assert_close(model([one])[0]["sem_seg"].full(), first.flip(0))
    model.set_vocabulary(Vocabulary.from_names([f"word {i}" for i in range(40)]))
    assert model([one])[0]["sem_seg"].shape == (40, 64, 64)
    after = model.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())


def test_prompt_denoising(make_model):
    """A class whose largest probability is below the threshold is removed, but never all."""
    one = record(64, 96, height=32, width=48)
    words = Vocabulary.from_names([f"word {i}" for i in range(12)])
    settings = {"vocabulary": words, "temperature": 10.0}
    plain = make_model(**settings)
    whole = plain([{"image": one["image"]}])[0]["sem_seg"].full()
    small = plain([one])[0]["sem_seg"].full()
    best = np.exp(whole.double().numpy())
    best = (best / best.sum(axis=0)).max(axis=(1, 2))
    threshold = float(np.sort(best)[8:10].mean())
    kept = best >= threshold
    assert kept.sum() == 3
    found = make_model(**settings, min_probability=threshold)([one])[0]["sem_seg"].full()
    assert torch.equal(found[kept], small[kept])
    assert (found[~kept] == float("-inf")).all()
    alone = make_model(**settings, min_probability=1.0)([one])[0]["sem_seg"].full()
    assert torch.equal(alone.isfinite().flatten(1).all(1), torch.from_numpy(best == best.max()))


def test_nothing_is_trained(make_model):
    model = make_model("resnet")
    assert [p for p in model.parameters() if p.requires_grad] == []
    with pytest.raises(ConfigError, match="ZeroShotSegmentor has nothing to train: .*--eval-only"):
        model.train()([record(64, 64)])
    assert not model.eval()([record(64, 64)])[0]["sem_seg"].full().requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 64}, "give both, or neither"),
        ({"window": 64, "window_stride": 65}, "leave gaps"),
        ({"path": "keys"}, "path='keys': choose from value, tokens, values"),
        ({"min_probability": 1.5}, "min_probability=1.5 must lie in 0..1"),
    ],
)
def test_settings_that_cannot_be(make_model, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_model(**settings)


def test_a_resnet_has_one_path(make_model):
    with pytest.raises(ConfigError, match="'values' needs a transformer"):
        make_model("resnet", path="values")([record(64, 64)])
