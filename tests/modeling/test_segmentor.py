"""Semantic segmentation with and without guidance."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from torch import Tensor, nn

from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.backbone import AlignedResNet, TimmBackbone
from densedet.modeling.guidance import PixelScoreLoss
from densedet.modeling.meta_arch import Segmentor
from densedet.modeling.sem_seg_head import SegmentationHead
from densedet.modeling.sliding_window import windows
from densedet.modeling.test_time_augmentation import SemanticTTA
from densedet.vocabulary import Vocabulary

CHANNELS = 8
WORDS = Vocabulary.from_names(["sky", "road", "tree"])


@pytest.fixture
def make_model(make_guided: Any) -> Callable[..., Segmentor]:
    """``make_model(guided=True, classes=3, guidance={}, **kwargs)``: ``guidance`` of
    `make_guided`."""

    def make(
        guided: bool = True, classes: int = 3, guidance: dict[str, Any] | None = None, **kwargs: Any
    ) -> Segmentor:
        bottom_up = make_guided(WORDS, PixelScoreLoss(), **(guidance or {}))
        if not guided:
            bottom_up = AlignedResNet(bottom_up.trunk.visual, aligned=False)
        names = ["res2", "res3", "res4", "res5"]
        shapes = {f"p{i}": ShapeSpec(channels=CHANNELS, stride=2**i) for i in (2, 3, 4, 5)}
        head = SegmentationHead(
            input_shape=shapes, num_classes=classes, conv_dims=CHANNELS, common_stride=4, norm="BN"
        )
        settings = {"window": 64, "window_stride": 43, **kwargs}
        if not guided:
            settings.setdefault("vocabulary", WORDS)
        return Segmentor(backbone=FPN(bottom_up, names, CHANNELS), sem_seg_head=head, **settings)

    return make


def record(rows: int, columns: int, seed: int = 0, **extra: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, rows, columns), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 3, (rows, columns), generator=generator)
    labels[: rows // 3] = 255
    return {"image": image, "sem_seg": labels, **extra}


@pytest.mark.parametrize("guided", [True, False])
def test_a_training_step(make_model: Any, guided: bool) -> None:
    model = make_model(guided).train()
    losses = model([record(64, 64), record(40, 50, seed=1)])
    assert set(losses) == ({"loss_sem_seg", "loss_aux"} if guided else {"loss_sem_seg"})
    assert all(loss.isfinite() and loss.ndim == 0 and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert model.sem_seg_head.predictor.weight.grad.any()
    assert model.backbone.fpn_lateral5.weight.grad.any()
    if guided:
        guidance = model.guided.guidance
        assert guidance.text.contexts.grad.any() and guidance.gamma.grad.any()
        assert all(p.grad.any() for p in guidance.decoder.out_proj.parameters())
        assert all(p.grad is None for p in guidance.text.encoder.parameters())
    else:
        assert model.guided is None
        assert model.backbone.bottom_up.visual.tower.layer4[0].conv1.weight.grad.any()


GUIDANCES: dict[str, dict[str, Any]] = {
    "post": {},
    "pre": {"prompting": "pre"},
    "no decoder": {"decoder": False},
    "timm": {"trunk": lambda: TimmBackbone("resnet18", embed_dim=16, grid=2)},
}


@pytest.mark.parametrize("kind", ["plain", *GUIDANCES])
def test_every_parameter_learns(make_model: Any, kind: str, without_gradient: Any) -> None:
    options = dict(GUIDANCES.get(kind, {}))
    if "trunk" in options:
        options["trunk"] = options["trunk"]()
    model = make_model(kind != "plain", guidance=options).train()
    losses = model([record(64, 64), record(40, 50, seed=1)])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert without_gradient(model) == []


def test_training_pads_to_the_window(make_model: Any) -> None:
    """Images with 0 after normalisation, labels with the ignored value."""
    model = make_model(window=96, window_stride=64).train()
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.sem_seg_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    small, wide = record(40, 50), record(60, 100, seed=1)
    model([small, wide])
    images, labels = seen
    assert images.shape == (2, 3, 96, 128)
    assert labels.shape == (2, 96, 128)
    assert not images[0, :, 40:].any() and not images[0, :, :, 50:].any()
    normal = (small["image"] - model.pixel_mean) / model.pixel_std
    assert torch.equal(images[0, :, :40, :50], normal)
    assert (labels[0, 40:] == 255).all() and (labels[0, :, 50:] == 255).all()
    assert torch.equal(labels[1, :60, :100], wide["sem_seg"])


def test_training_without_windows_pads_to_the_largest_picture(make_model: Any) -> None:
    model = make_model(window=None, window_stride=None).train()
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.sem_seg_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    model([record(40, 50), record(60, 100, seed=1)])
    images, labels = seen
    assert images.shape == (2, 3, 64, 128)  # multiples of 32
    assert labels.shape == (2, 64, 128)


@pytest.mark.parametrize("guided", [True, False])
def test_no_valid_pixel(make_model: Any, guided: bool) -> None:
    """The losses of a batch without any valid pixel are 0 and have finite gradients."""
    model = make_model(guided).train()
    empty = record(50, 40)
    empty["sem_seg"].fill_(255)
    losses = model([empty, empty])
    sum(losses.values()).backward()
    assert all(loss.item() == 0 for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("source", ["head", "scores"])
def test_evaluation_gives_the_size_of_the_file(make_model: Any, guided: bool, source: Any) -> None:
    if source == "scores" and not guided:
        with pytest.raises(ConfigError, match="no guidance"):
            make_model(guided, predict_from=source)
        return
    model = make_model(guided, predict_from=source).eval()
    with torch.no_grad():
        outputs = model([record(70, 90, height=100, width=130), record(33, 40, seed=1)])
    assert [tuple(x["sem_seg"].shape) for x in outputs] == [(3, 100, 130), (3, 33, 40)]
    assert all(
        x["sem_seg"].full().isfinite().all() and x["sem_seg"].full().std() > 0 for x in outputs
    )


def test_one_window_is_a_plain_forward_pass(make_model: Any) -> None:
    model = make_model().eval()
    one = record(64, 64)
    with torch.no_grad():
        found = model([one])[0]["sem_seg"].full()
        images = ((one["image"] - model.pixel_mean) / model.pixel_std)[None]
        expected = model.sem_seg_head(model.backbone(images))[0][0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_windows_are_averaged_and_then_resized(make_model: Any, slide_by_hand: Any) -> None:
    model = make_model().eval()
    one = record(80, 100, height=40, width=50)
    with torch.no_grad():
        found = model([one])[0]["sem_seg"].full()
        images = ((one["image"] - model.pixel_mean) / model.pixel_std)[None]
        assert len(windows((80, 100), 64, 43)) == 4
        logits = slide_by_hand(images, lambda x: model.sem_seg_head(model.backbone(x))[0], 64, 43)
    expected = F.interpolate(logits, (40, 50), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_without_windows_pictures_are_whole(make_model: Any) -> None:
    """One forward pass on the padded picture, cut and then resized."""
    model = make_model(window=None, window_stride=None).eval()
    one = record(80, 100, height=40, width=50)
    with torch.no_grad():
        found = model([one])[0]["sem_seg"].full()
        image = (one["image"] - model.pixel_mean) / model.pixel_std
        padded = F.pad(image, (0, 28, 0, 16))[None]  # to 96 x 128
        logits = model.sem_seg_head(model.backbone(padded))[0][..., :80, :100]
        windows_apart = make_model().eval()([one])[0]["sem_seg"].full()
    expected = F.interpolate(logits, (40, 50), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, windows_apart, atol=1e-3)


@pytest.mark.parametrize("source", ["head", "scores"])
def test_small_pictures_are_padded_to_the_stride_alone(make_model: Any, source: Any) -> None:
    model = make_model(predict_from=source, window=128, window_stride=85).eval()
    seen: list[Tensor] = []
    trunk = model.guided.trunk
    trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        found = model([record(33, 70)])[0]["sem_seg"].full()
    assert [tuple(x.shape) for x in seen] == [(1, 3, 64, 96)]
    assert not seen[0][..., 33:, :].any() and not seen[0][..., 70:].any()
    assert found.shape == (3, 33, 70)


def test_the_scores_are_the_guidance_alone(
    make_model: Any, count_calls: Callable[[nn.Module], list[int]]
) -> None:
    model = make_model(predict_from="scores").eval()
    neck, head = count_calls(model.backbone), count_calls(model.sem_seg_head)
    one = record(64, 64)
    with torch.no_grad():
        found = model([one])[0]["sem_seg"].full()
        images = ((one["image"] - model.pixel_mean) / model.pixel_std)[None]
        scores = model.guided.guide(images).scores / 0.07
    assert neck == head == []
    expected = F.interpolate(scores, (64, 64), mode="bilinear", align_corners=False)[0]
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_scores_follow_any_vocabulary(make_model: Any) -> None:
    model = make_model(predict_from="scores").eval()
    one = record(64, 64)
    with torch.no_grad():
        before = model([one])[0]["sem_seg"].full()
        model.set_vocabulary(Vocabulary.parse("water,lake;tree;sky;cat;road"))
        after = model([one])[0]["sem_seg"].full()
    assert model.vocabulary.labels == ("water", "tree", "sky", "cat", "road")
    assert after.shape == (5, 64, 64)
    # gamma mixes the prompts a little
    for label, row in (("sky", 2), ("road", 4), ("tree", 1)):
        assert torch.allclose(after[row], before[WORDS.index(label)], atol=1e-2)
    with pytest.raises(VocabularyError, match="retraining"):
        model.train()([one])
    model.set_vocabulary(WORDS)
    assert set(model.train()([one, one])) == {"loss_sem_seg", "loss_aux"}


@pytest.mark.parametrize("guided", [True, False])
def test_the_head_refuses_another_vocabulary(make_model: Any, guided: bool) -> None:
    model = make_model(guided).eval()
    holders = "FPN and the classifier hold" if guided else "the classifier holds"
    for names in (["sky", "road"], ["road", "sky", "tree"], ["sky", "road", "tree", "cat"]):
        with pytest.raises(VocabularyError, match=f"{holders}.*retraining.*predict_from"):
            model.set_vocabulary(Vocabulary.from_names(names))
    assert model.vocabulary == WORDS
    synonyms = Vocabulary.parse("sky,heaven;road;tree")
    model.set_vocabulary(synonyms)
    assert model.vocabulary == synonyms
    if guided:
        assert model.guided.guidance.vocabulary == synonyms
    with torch.no_grad():
        assert model([record(40, 40)])[0]["sem_seg"].shape == (3, 40, 40)


def test_a_name_over_the_budget_changes_nothing(make_model: Any) -> None:
    model = make_model().eval()
    with pytest.raises(VocabularyError, match="class_tokens"):
        model.set_vocabulary(Vocabulary.parse("sky,the wide blue heaven above;road;tree"))
    assert model.vocabulary == model.guided.guidance.vocabulary == WORDS


def test_a_guidance_with_other_labels_is_noticed(make_model: Any) -> None:
    """The same number of channels, so that nothing else would."""
    model = make_model().eval()
    model.guided.guidance.set_vocabulary(Vocabulary.from_names(["cat", "dog", "cow"]))
    with pytest.raises(VocabularyError, match="'sky', not 'cat'"):
        model([record(40, 40)])


def test_windows_and_pictures_share_the_text(
    make_model: Any,
    count_calls: Callable[[nn.Module], list[int]],
) -> None:
    model = make_model(tta=SemanticTTA(scales=(1.0, 1.5), short=64, long=128)).eval()
    calls = count_calls(model.guided.guidance.text.encoder.ln_final)
    trunk = count_calls(model.guided.trunk)
    with torch.no_grad():
        model([record(64, 100), record(80, 64, seed=1)])
    assert calls == [3]
    assert len(trunk) > 8  # windows of two pictures at two scales, mirrored


def test_augmentation_at_test_time_gives_probabilities(make_model: Any) -> None:
    plain = make_model().eval()
    model = make_model(tta=SemanticTTA(scales=(1.0,), flip=False, short=64, long=100)).eval()
    one = record(64, 100)
    with torch.no_grad():
        expected = plain([one])[0]["sem_seg"].full().softmax(dim=0)
        assert torch.allclose(model([one])[0]["sem_seg"].full(), expected, atol=1e-5)
        mirrored = make_model(tta=SemanticTTA(scales=(1.0,), short=64, long=100)).eval()
        both = mirrored([one])[0]["sem_seg"].full()
        other = {**one, "image": one["image"].flip(-1)}
        flipped = plain([other])[0]["sem_seg"].full().softmax(dim=0).flip(-1)
    assert torch.allclose(both, (expected + flipped) / 2, atol=1e-5)


def test_the_vocabulary_is_that_of_the_guidance(make_model: Any) -> None:
    assert make_model().vocabulary == WORDS
    assert make_model(vocabulary=WORDS).vocabulary == WORDS
    with pytest.raises(ConfigError, match="not that of the guidance"):
        make_model(vocabulary=Vocabulary.from_names(["a", "b", "c"]))
    with pytest.raises(ConfigError, match="give the vocabulary"):
        make_model(guided=False, vocabulary=None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 4}, "3 categories.*num_classes=4"),
        ({"window_stride": 65}, "gaps"),
        ({"window_stride": None}, "window and window_stride: give both, or neither"),
        ({"window": None}, "window and window_stride: give both, or neither"),
        ({"predict_from": "neck"}, "head, scores"),
    ],
)
def test_wrong_settings_are_refused(make_model: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_model(**wrong)


def test_it_is_built_on_the_meta_device(make_model: Any) -> None:
    with torch.device("meta"):
        model = make_model()
    assert all(p.is_meta for p in model.parameters())


def test_a_state_dict_has_every_weight_once(make_model: Any) -> None:
    model = make_model()
    names = list(model.state_dict())
    assert "backbone.bottom_up.guidance.text.contexts" in names
    assert "backbone.bottom_up.trunk.visual.tower.conv1.weight" in names
    tops = {name.split(".")[0] for name in names}
    assert tops == {"backbone", "sem_seg_head"}
