"""What the parts compute, compared with the models that they are of; nothing is traced here."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead

from densedet.errors import ConfigError
from densedet.export import make_part
from densedet.modeling.backbone import ClipBackbone
from densedet.modeling.guidance import PromptedTextEncoder
from densedet.modeling.meta_arch import Segmentor
from densedet.predictor.encoder import ImageEncoder
from densedet.predictor.images import prepare

MASK_ENSEMBLE = (
    "model.backbone.bottom_up.bottom_up.dense=True",
    "model.mask_ensemble={_target_: densedet.modeling.mask_ensemble.MaskEnsemble, "
    "seen: 0.0, unseen: 0.65, temperature: 27.0}",
)


def set_square(backbone, side):
    """Let the one CLIP of a backbone ask for squares."""
    (clip,) = [m for m in backbone.modules() if isinstance(m, ClipBackbone)]
    clip.square_size = side


def outputs_of(model, images):
    with torch.no_grad():
        return model([{"image": image} for image in images])


@pytest.mark.parametrize("kind", ["vit", "resnet", "eva"])
def test_dense_map_and_cosines(make_dense, make_visual, pictures, kind):
    part, (visual, embeddings) = make_dense(kind), make_visual(kind)
    images = pictures(2, 3 * visual.stride, 4 * visual.stride)
    dense, scores = part(images)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (visual.pixel_mean, visual.pixel_std))
    with torch.no_grad():
        expected = visual.dense_map((images / 255 - mean) / std)
    torch.testing.assert_close(dense, expected, rtol=0, atol=1e-5)
    names = torch.einsum("bdyx,pd->bpyx", expected, embeddings.vectors)
    by_hand = torch.stack([names[:, :2].amax(1), names[:, 2], names[:, 3]], dim=1)
    assert scores.shape == (2, 3, 3, 4) and by_hand.std() > 0.01
    torch.testing.assert_close(scores, by_hand, rtol=0, atol=1e-5)
    assert part.settings()["stride"] == visual.stride


def test_dense_part_of_a_detector(make_detector, make_dense, pictures):
    """The same tower and words as `make_dense`, reached through a config."""
    part, images = make_part(make_detector(), "dense"), pictures(1, 48, 80)
    for own, other in zip(part(images), make_dense("vit")(images), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "side"), [("detector", 0), ("panoptic", 0), ("detector", 64)])
def test_dense_part_is_the_dense_map_of_the_model(make_model, pictures, kind, side):
    """As the model pads pictures; others than those of the part's sizes are not taken."""
    model = make_model(kind)
    set_square(model.backbone, side)
    part = make_part(model, "dense")
    images = pictures(1, side, side) if side else pictures(1, 48, 112)
    pixels = images[0].permute(1, 2, 0).numpy().astype(np.uint8)
    expected, _ = ImageEncoder(model, torch.float32).dense_map(
        prepare(pixels, T.AugmentationList([]))
    )
    dense, _ = part(torch.from_numpy(pixels).permute(2, 0, 1)[None].float())
    torch.testing.assert_close(dense[0], expected, rtol=0, atol=1e-5)
    assert (part.multiple, part.size) == (16, (64, 64) if side else None)
    with pytest.raises(ConfigError, match="is built for 64x64" if side else "multiples of 16"):
        part.check_size((40, 112))


def test_zero_shot_logits_are_those_of_the_model(make_model, words, pictures):
    model = make_model("zero_shot")
    model.set_vocabulary(words)
    images = pictures(2, 40, 64)
    (logits,) = make_part(model, "semantic")(images)
    expected = torch.stack([x["sem_seg"].full() for x in outputs_of(model, images)])
    assert logits.shape == (2, 3, 40, 64)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("source", ["head", "scores"])
def test_denseclip_logits_are_those_of_the_model(make_model, words, pictures, source):
    model = make_model("denseclip", f"model.predict_from={source}")
    if source == "scores":
        model.set_vocabulary(words)
    images = pictures(2, 160, 160)  # one window
    (logits,) = make_part(model, "semantic")(images)
    expected = torch.stack([x["sem_seg"].full() for x in outputs_of(model, images)])
    assert logits.shape == (2, 3 if source == "scores" else 70, 160, 160)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_panoptic_models_have_both_parts(make_model, pictures):
    model = make_model("panoptic")
    semantic = make_part(model, "semantic")
    side = 4 * semantic.multiple
    images = pictures(1, side, side)
    (expected,) = outputs_of(model, images)
    torch.testing.assert_close(
        semantic(images)[0][0], expected["sem_seg"].full(), rtol=1e-4, atol=1e-4
    )
    detector = make_part(model, "detector", (side, side))
    things = [i for i, kind in enumerate(model.vocabulary.kinds) if kind == "thing"]
    assert detector.vocabulary.labels == tuple(model.vocabulary.labels[i] for i in things)
    assert detector(images)[1].shape[1] == len(things) < len(model.vocabulary)


@pytest.mark.parametrize("kind", ["semantic", "detector"])
def test_the_mask_ensemble_is_left_out(make_model, pictures, kind):
    """It comes after the parts: they are those of the model without it, and say so."""
    model = make_model("panoptic", *MASK_ENSEMBLE)
    images = pictures(1, 160, 160)
    part = make_part(model, kind, (160, 160))
    mixed = outputs_of(model, images)[0]["sem_seg"].full()
    model.mask_ensemble = None
    plain = outputs_of(model, images)[0]["sem_seg"].full()
    without = make_part(model, kind, (160, 160))
    assert (mixed - plain).abs().max() > 0.1
    torch.testing.assert_close(part(images), without(images), rtol=0, atol=1e-5)
    if kind == "semantic":
        torch.testing.assert_close(part(images)[0][0], plain, rtol=1e-4, atol=1e-4)
    assert part.settings()["left_out"] == ["mask_ensemble"]
    assert without.settings()["left_out"] == []


def test_a_panoptic_model_that_pads_to_squares(make_model, pictures):
    """Other sizes would disagree with the model, which never sees them."""
    model = make_model("panoptic")
    set_square(model.backbone, 192)
    with pytest.raises(ConfigError, match=r"built for 192x192 \(HxW\) pixels, not 160x160"):
        make_part(model, "semantic", (160, 160))
    part = make_part(model, "semantic")
    assert part.size == (192, 192)
    images = pictures(1, 128, 160)
    padded = model.pixel_mean.expand(1, 3, 192, 192).clone()
    padded[..., :128, :160] = images
    expected = outputs_of(model, images)[0]["sem_seg"].full()
    found = part(padded)[0][0, :, :128, :160]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_segmentor_pads_no_pictures_to_squares(make_model, words, pictures):
    """Its training batches alone, so its part takes any size."""
    backbone = make_model("panoptic").backbone
    set_square(backbone, 192)
    head = SemSegFPNHead(
        {"p3": backbone.output_shape()["p3"]},
        num_classes=len(words),
        conv_dims=32,
        common_stride=backbone.output_shape()["p3"].stride,
    )
    model = Segmentor(
        backbone=backbone, sem_seg_head=head, vocabulary=words, window=None, window_stride=None
    ).eval()
    images = pictures(2, 128, 160)
    part = make_part(model, "semantic", (128, 160))
    expected = torch.stack([x["sem_seg"].full() for x in outputs_of(model, images)])
    torch.testing.assert_close(part(images)[0], expected, rtol=1e-4, atol=1e-4)


def test_the_dense_part_has_the_statistics_of_the_model(make_model, pictures):
    """Those of the tower may be another's: a loaded model does not fetch the tower's weights."""
    statistics = (90.0, 100.0, 110.0)
    model = make_model("zero_shot", f"+model.pixel_mean={list(statistics)}")
    part = make_part(model, "dense")
    assert part.pixel_mean.flatten().tolist() == list(statistics)
    images = pictures(1, 32, 40)
    with torch.no_grad():
        normal = (images - model.pixel_mean) / model.pixel_std
        expected = model.visual.dense_map(normal, model.path)
    torch.testing.assert_close(part(images)[0], expected, rtol=0, atol=1e-5)


def test_the_model_stays_as_it_is(make_model, pictures):
    model = make_model("denseclip")
    before = copy.deepcopy(model.state_dict())
    part = make_part(model, "semantic")
    assert not any(isinstance(m, PromptedTextEncoder) for m in part.modules())
    assert any(isinstance(m, PromptedTextEncoder) for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in part.parameters())
    own = {p.data_ptr() for p in model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in part.parameters())


def test_synonyms_of_another_vocabulary(make_model, words, pictures):
    """The words are those of the moment of the export; later changes do not reach the part."""
    model = make_model("zero_shot")
    model.set_vocabulary(words)
    part = make_part(model, "semantic")
    before = part(pictures(1, 32, 32))[0]
    model.set_vocabulary(words.with_unseen(["red star"]))
    outputs_of(model, pictures(1, 32, 32))
    assert torch.equal(part(pictures(1, 32, 32))[0], before)
    assert part.vocabulary == words


@pytest.mark.parametrize(
    ("model", "overrides", "part", "size", "message"),
    [
        ("icpc", (), "semantic", None, "depend on the image"),
        ("denseclip", (), "dense", None, 'take the part "semantic"'),
        ("denseclip", (), "detector", (160, 160), "is no OpenVocabularyRCNN"),
        ("denseclip", (), "masks", None, "choose from dense, semantic, detector"),
        ("denseclip", (), "semantic", (160, 150), "multiples of 32"),
        ("zero_shot", ("model.min_probability=0.5",), "semantic", None, "min_probability=null"),
        ("detector", (), "semantic", None, "OpenVocabularyRCNN has no semantic part"),
        ("detector", (), "detector", None, "for one size"),
        ("detector", (), "detector", (160, 100), "multiples of 16"),
    ],
)
def test_refusals(make_model, model, overrides, part, size, message):
    with pytest.raises(ConfigError, match=message):
        make_part(make_model(model, *overrides), part, size)


def test_head_resize_is_not_a_nearest_one(make_model, words, pictures):
    """Logits between the cells are interpolated, as in the model."""
    model = make_model("zero_shot")
    model.set_vocabulary(words)
    dense, scores = make_part(model, "dense")(pictures(1, 32, 32))
    (logits,) = make_part(model, "semantic")(pictures(1, 32, 32))
    resized = F.interpolate(100 * scores, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, resized, rtol=1e-4, atol=1e-4)
    assert dense.shape[-2:] == (4, 4)
