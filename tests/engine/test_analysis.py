"""Parameters and FLOPs of the shipped configs against the published and the recomputed figures."""

import functools
import json

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf
from torch import nn

from densedet.engine.analysis import (
    TEXT_EVERY_IMAGE,
    analyze,
    build_without_weights,
    without_weights,
)
from densedet.engine.config import load_config
from densedet.errors import ConfigError
from densedet.modeling.guidance import PromptedTextEncoder

DENSECLIP = "projects/denseclip/configs/"
FVIT = "projects/fvit/configs/"

# Config, millions of parameters without text and of text, billions of FLOPs; DenseCLIP, arXiv
# 2112.01518, and its repository's tables. Those of the ViT are corrected: they count transposed
# convolutions by their output, four times too much, and the baseline's positions for crops of 512.
SEGMENTATION = [
    ("ade20k_rn50_clip", 31.04, 0.0, 248.83),
    ("ade20k_rn50_denseclip", 50.25, 63.657, 269.83),
    ("ade20k_rn101_clip", 50.03, 0.0, 326.62),
    ("ade20k_rn101_denseclip", 67.80, 63.395, 346.29),
    ("ade20k_vitb16_clip", 101.28, 0.0, 863.46),
    ("ade20k_vitb16_denseclip", 105.27, 63.395, 869.16),
]
DETECTION = [
    ("coco_retinanet_rn50_clip", 37.99, 0.0, 265.2),
    ("coco_retinanet_rn50_denseclip", 60.45, 63.657, 285.2),
    ("coco_retinanet_rn101_clip", 56.98, 0.0, 341.1),
    ("coco_retinanet_rn101_denseclip", 78.00, 63.395, 359.9),
    ("coco_mask_rcnn_rn50_clip", 44.42, 0.0, 286.0),
    ("coco_mask_rcnn_rn50_denseclip", 66.69, 63.657, 305.9),
    ("coco_mask_rcnn_rn101_clip", 63.41, 0.0, 361.9),
    ("coco_mask_rcnn_rn101_denseclip", 84.24, 63.395, 380.7),
]


@functools.cache
def build(name):
    return build_without_weights(load_config(name))


@functools.cache
def analyzed(name):
    return analyze(build(name))


@pytest.mark.parametrize(("name", "params", "text", "flops"), SEGMENTATION + DETECTION)
def test_published_figures(name, params, text, flops):
    found = analyzed(f"{DENSECLIP}{name}.py")
    assert found.size == ((1024, 1024) if name.startswith("ade20k") else (800, 1280))
    assert found.params_without_text / 1e6 == pytest.approx(params, abs=0.02)
    assert found.text.params / 1e6 == pytest.approx(text, abs=0.001)
    assert found.flops / 1e9 == pytest.approx(flops, rel=0.005)


def test_breakdown_of_rn50():
    """The head lacks the resizes to the same size that the publication's has: 0.2 G."""
    parts = analyzed(f"{DENSECLIP}ade20k_rn50_denseclip.py").parts
    found = {name: (part.params / 1e6, part.flops / 1e9) for name, part in parts.items()}
    assert list(found) == ["backbone", "guidance", "neck", "head"]
    assert found["backbone"] == pytest.approx((38.741, 132.0), abs=0.05)
    # 3.9488 M of the context decoder, 8 contexts of 512, gamma; 1.44 G of the decoder and
    # 1024 locations x 150 classes x 1024 channels
    assert parts["guidance"].params == pytest.approx(3.9488e6 + 8 * 512 + 1024, abs=50)
    assert found["guidance"][1] == pytest.approx(1.44 + 1024 * 150 * 1024e-9, abs=0.01)
    assert found["neck"] == pytest.approx((3.383, 59.45), abs=0.005)
    assert found["head"] == pytest.approx((4.171, 76.1 + 0.63 - 0.2), abs=0.05)


@pytest.mark.parametrize(("name", "millions"), [("rn50", 3.9488), ("rn101", 3.5530)])
def test_context_decoder(name, millions):
    decoder = build(f"{DENSECLIP}ade20k_{name}_denseclip.py").backbone.bottom_up.guidance.decoder
    assert sum(p.numel() for p in decoder.parameters()) / 1e6 == pytest.approx(millions, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "billions"), [("ade20k_rn50", 23.26), ("coco_retinanet_rn50", 12.59)]
)
def test_the_text_tower_stands_apart(name, billions):
    """Start and contexts count once, not for every class; none of it is in the image's FLOPs."""
    found = analyzed(f"{DENSECLIP}{name}_denseclip.py")
    assert found.text.flops / 1e9 == pytest.approx(billions, abs=0.05)
    assert found.flops == sum(part.flops for part in found.parts.values())


@pytest.mark.parametrize("name", [f"{DENSECLIP}coco_mask_rcnn_rn50_denseclip.py"])
def test_every_parameter_has_a_part(name):
    found, model = analyzed(name), build(name)
    assert list(found.parts) == ["backbone", "guidance", "neck", "rpn", "box head", "mask head"]
    total = sum(p.numel() for p in model.parameters())
    assert found.params_without_text + found.text.params == total
    assert min(part.flops for part in found.parts.values()) > 0


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        (f"{FVIT}ov_coco_eva_b16.py", (640, 640), 63.4),
        (f"{FVIT}ov_lvis_eva_l14.py", (896, 896), 123.65),
        (f"{FVIT}ov_coco_rn50.py", (640, 640), 63.7),
        (f"{FVIT}quickstart.py", (800, 1280), 6.7),
        ("projects/clipself/configs/quickstart_detector.py", (800, 1280), 6.7),
        (f"{DENSECLIP}quickstart.py", (1024, 1024), 6.7),
    ],
)
def test_other_models(name, size, text):
    """Detectors with an embedder have the text tower outside; theirs runs once a vocabulary."""
    found, model = analyzed(name), build(name)
    assert found.size == size and found.text.params / 1e6 == pytest.approx(text, abs=0.05)
    prompted = any(isinstance(module, PromptedTextEncoder) for module in model.modules())
    total = sum(p.numel() for p in model.parameters())
    assert found.params_without_text == total - prompted * found.text.params
    assert min(part.flops for part in found.parts.values()) > 0


def test_the_box_head_counts_1000_regions():
    """Two layers of 12544x1024 and 1024x1024, classes and boxes."""
    box_head = analyzed(f"{DENSECLIP}coco_mask_rcnn_rn50_clip.py").parts["box head"]
    layers = 256 * 7 * 7 * 1024 + 1024 * 1024 + 1024 * 81 + 1024 * 320
    assert box_head.flops == 1000 * layers
    assert box_head.params == layers + 1024 + 1024 + 81 + 320


PANOPTIC = "projects/panoptic_fpn/configs/"


@pytest.mark.parametrize("name", ["quickstart", "coco_rn50", "coco_eva_b16", "cross_dataset_rn50"])
def test_panoptic_models_have_a_semantic_head(name):
    found, model = analyzed(f"{PANOPTIC}{name}.py"), build(f"{PANOPTIC}{name}.py")
    heads = ["rpn", "box head", "mask head", "semantic head"]
    assert list(found.parts) == ["backbone", "neck", *heads]
    assert found.params_without_text == sum(p.numel() for p in model.parameters())
    assert min(part.flops for part in found.parts.values()) > 0


def test_cost_of_the_semantic_head():
    """Convolutions of 3x3 on levels of 4, 8 and 16 pixels, norms, embeddings, 70 cosines, logits.

    Group norms cost 5 operations an element, bilinear interpolation 4.
    """
    name = f"{PANOPTIC}quickstart.py"
    assert build(name).vocabulary.groups == tuple(range(70))  # one prompt each
    head = analyze(build(name), (160, 160)).parts["semantic head"]
    p2, p3, p4 = 40 * 40, 20 * 20, 10 * 10
    convolutions = (p2 + (p3) + (p4 + p3)) * 9 * 64 * 64
    norms = 5 * 64 * (p2 + p3 + p4 + p3)
    enlarged = 4 * 64 * (p2 + p3 + p2)
    embeddings = p2 * 64 * 128
    logits = p2 * 70 * 128 + 4 * 70 * 160 * 160
    assert head.flops == convolutions + norms + enlarged + embeddings + logits
    assert head.params == 4 * (9 * 64 * 64 + 2 * 64) + 64 * 128 + 128 + 1


def test_sizes():
    name = f"{DENSECLIP}ade20k_rn50_clip.py"
    quarter = analyze(build(name), (512, 512))
    assert quarter.size == (512, 512)
    assert quarter.flops * 4 == analyzed(name).flops
    assert analyze(build(name), (481, 512)).size == (512, 512)  # padded to multiples of 32
    square = build(f"{FVIT}ov_coco_eva_b16.py")
    assert analyze(square, (480, 640)) == analyzed(f"{FVIT}ov_coco_eva_b16.py")
    with pytest.raises(ConfigError, match="--size 800 1280 is larger than the square of 640"):
        analyze(square, (800, 1280))
    with pytest.raises(ConfigError, match="--size 0 64: both must be at least 1"):
        analyze(square, (0, 64))


def test_parameters_alone():
    name = f"{DENSECLIP}ade20k_rn50_denseclip.py"
    found, full = analyze(build(name), flops=False), analyzed(name)
    assert (found.size, found.flops, found.text.flops) == (None, None, None)
    assert {n: p.params for n, p in found.parts.items()} == {
        n: p.params for n, p in full.parts.items()
    }
    assert found.params_without_text == full.params_without_text
    assert json.loads(json.dumps(found.as_json())) == found.as_json()


def test_prediction_from_scores_runs_neither_neck_nor_head():
    name, change = f"{DENSECLIP}quickstart.py", "model.predict_from=scores"
    parts = analyze(build_without_weights(load_config(name, [change]))).parts
    assert parts["neck"].flops == parts["head"].flops == 0
    assert parts["backbone"] == analyzed(name).parts["backbone"]


def test_pre_model_prompting_pays_for_text():
    """There the text tower runs for every image."""
    name = f"{DENSECLIP}quickstart.py"
    cfg = load_config(name)
    guidance = cfg.model.backbone.bottom_up.guidance
    guidance.prompting = "pre"
    guidance.decoder.query_dim = build(name).backbone.bottom_up.guidance.text.width
    found = analyze(build_without_weights(cfg))
    post = analyzed(name)
    assert found.parts[TEXT_EVERY_IMAGE] == (0, post.text.flops)
    assert found.text == (post.text.params, None)
    assert found.parts["guidance"].flops > 0.5 * post.parts["guidance"].flops
    assert found.flops == sum(part.flops for part in found.parts.values()) > post.text.flops


def test_the_mode_of_the_condition_decides_who_pays_for_text():
    name, change = "projects/icpc/configs/quickstart.py", "{}.condition.mode=static"
    change = change.format("model.backbone.bottom_up.guidance")
    kept = analyze(build_without_weights(load_config(name, [change])))
    added = analyzed(name)
    assert TEXT_EVERY_IMAGE not in kept.parts and kept.text.flops > 0
    assert added.parts[TEXT_EVERY_IMAGE] == (0, kept.text.flops)
    assert added.text == (kept.text.params, None)
    network = added.parts["guidance"].flops - kept.parts["guidance"].flops
    assert added.flops == kept.flops + kept.text.flops + network
    assert added.as_json()["flops_text"] is None


def test_without_weights():
    cfg = OmegaConf.create(
        {"a": {"pretrained": "openai", "b": [{"pretrained": True}, "${a}"]}, "c": "${a.pretrained}"}
    )
    without_weights(cfg)
    assert cfg.a.pretrained is None and cfg.a.b[0].pretrained is None and cfg.c is None


def test_nothing_of_the_model_is_real():
    tensors = build(f"{DENSECLIP}ade20k_rn50_denseclip.py").state_dict().values()
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("name", ["quickstart", "eva02_b16_coco_regionclip"])
def test_models_of_another_kind(name):
    cfg = load_config(f"projects/clipself/configs/{name}.py")
    with pytest.raises(ConfigError, match="is no segmentor or detector"):
        build_without_weights(cfg)


def test_configs_without_a_model():
    with pytest.raises(ConfigError, match="the config has no 'model'"):
        build_without_weights(OmegaConf.create({"train": {}}))


def test_heads_of_another_kind():
    cfg = load_config(f"{FVIT}quickstart.py")
    cfg.model.proposal_generator = L(nn.Identity)()
    with torch.device("meta"), pytest.raises(ConfigError, match="Identity with OpenVocabularyROI"):
        analyze(build_without_weights(cfg))
