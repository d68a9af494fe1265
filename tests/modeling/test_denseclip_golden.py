"""DenseCLIP whole against vectors of the published code, through checkpoints as it writes them.

The models are those of the configs for released checkpoints, only smaller: the switches that such
weights need are tested where they are set.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, GeneralizedRCNN
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from open_clip.factory import _MODEL_CONFIGS
from torch import Tensor, nn

from densedet import model_zoo
from densedet.modeling.backbone.aligned import DENSE_EMBEDDING, POOLED_EMBEDDING
from densedet.modeling.denseclip_checkpoint import (
    convert_released,
    from_released,
    read_released,
    to_released,
)
from densedet.modeling.guidance import box_targets
from densedet.vocabulary import Vocabulary
from densedet.weights import load_strictly

pytestmark = pytest.mark.golden

TINY = "densedet-test-tiny"
INPUTS = {"image", "label", "names", "boxes", "labels", "boxes_image_index"}
# The order of RetinaNet's nine anchors in Detectron2, by their place in the checkpoint.
ANCHORS = [0, 3, 6, 1, 4, 7, 2, 5, 8]
LEVELS = ("p3", "p4", "p5", "p6", "p7")


class Golden:
    """One file: sizes, weights under released names, and arrays."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self.sizes: dict[str, Any] = json.loads(str(arrays.pop("config")))
        self.names = [str(name) for name in arrays["names"]]
        self.weights = OrderedDict(
            (name.removeprefix("weights/"), torch.from_numpy(np.array(arrays.pop(name))))
            for name in list(arrays)
            if name.startswith("weights/")
        )
        self.arrays = {k: torch.from_numpy(v) for k, v in arrays.items() if v.dtype.kind != "U"}

    def write(self, path: Path) -> Path:
        """Write the weights as mmcv does."""
        meta = {"CLASSES": tuple(self.names), "mmcv_version": "1.3.17", "config": "", "iter": 80000}
        optimizer = {"state": {}, "param_groups": [{"lr": 1e-6, "params": []}]}
        torch.save({"meta": meta, "state_dict": self.weights, "optimizer": optimizer}, path)
        return path

    def differences(self, found: dict[str, Tensor]) -> dict[str, float]:
        """The arrays that are not as expected, with their error in units of the tolerance."""
        expected = {name: a for name, a in self.arrays.items() if name not in INPUTS}
        assert found.keys() == expected.keys()
        errors = {name: _error(name, found[name].detach(), a) for name, a in expected.items()}
        return {name: error for name, error in errors.items() if not error <= 1}


def _error(name: str, found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape, name
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found.to(expected.dtype), expected) else float("inf")
    tolerance = 1e-4 if name.startswith("grad") else 5e-5 if name == "loss_seg" else 1e-5
    return float((found - expected).abs().max() / (tolerance * expected.abs().max()))


def tiny_clip(sizes: dict[str, Any]) -> dict[str, Any]:
    """open_clip's config of the towers of a file."""
    is_vit = "patch" in sizes
    channels = sizes["width"] if is_vit else 32 * sizes["width"]  # of the attention's tokens
    vision = {
        "image_size": sizes["input_resolution"],
        "width": sizes["width"],
        "layers": sizes["layers"],
        "head_width": channels // sizes["heads"],
    }
    if is_vit:
        vision["patch_size"] = sizes["patch"]
    text = {
        "context_length": sizes["n_contexts"] + sizes["class_tokens"],
        "vocab_size": 49408,
        "width": sizes["text_width"],
        "heads": sizes["text_heads"],
        "layers": sizes["text_layers"],
    }
    return {
        "embed_dim": sizes["embed_dim"],
        "quick_gelu": True,
        "vision_cfg": vision,
        "text_cfg": text,
    }


def resize(cfg: Any, golden: Golden) -> DictConfig:
    """Give the model of a released config the sizes of a file."""
    sizes, model = golden.sizes, cfg.model
    stride = sizes.get("patch", 32)
    cfg.clip.update(model=TINY, pretrained=None, embed_dim=sizes["embed_dim"])
    cfg.clip.grid = sizes["input_resolution"] // stride
    guidance = model.backbone.bottom_up.guidance
    guidance.text.vocabulary = L(Vocabulary.from_names)(names=golden.names)
    guidance.text.update(num_contexts=sizes["n_contexts"], class_tokens=sizes["class_tokens"])
    guidance.decoder.update(
        width=sizes["dec_width"], heads=sizes["dec_heads"], layers=sizes["dec_layers"]
    )
    guidance.temperature = sizes["tau"]
    model.backbone.out_channels = sizes["fpn"]
    model.update(pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)  # the images are normalised
    return cfg


@pytest.fixture
def build(
    golden_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, Callable[[Any, Golden], None]], tuple[Any, Golden]]:
    """``build(file, config, adapt)``: the model of a config in the sizes and with the weights of a
    file, in eval mode."""

    def make(file: str, config: str, adapt: Callable[[Any, Golden], None]) -> tuple[Any, Golden]:
        golden = Golden(golden_dir / f"denseclip_{file}.npz")
        monkeypatch.setitem(_MODEL_CONFIGS, TINY, tiny_clip(golden.sizes))
        cfg = resize(model_zoo.get_config(f"projects/denseclip/configs/{config}"), golden)
        adapt(cfg.model, golden)
        model = instantiate(cfg.model)
        path = golden.write(tmp_path / "released.pth")
        load_strictly(model, convert_released(path, model), path)
        return model.eval(), golden

    return make


def train_without_noise(*modules: nn.Module) -> None:
    """Let modules compute losses and gradients, with everything below them still in eval mode."""
    for module in modules:
        module.training = True


def gradients(loss: Tensor, model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Gradients of a loss by the released names of parameters."""
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    dense = {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }
    released = to_released(dense)
    return {name: released[name] for name in names}


def segmentation_sizes(model: Any, golden: Golden) -> None:
    sizes = golden.sizes
    model.sem_seg_head.update(num_classes=len(golden.names), conv_dims=sizes["head"])
    model.sem_seg_head.ignore_value = sizes["ignore_index"]
    for level in model.sem_seg_head.input_shape.values():
        level.channels = sizes["fpn"]
    model.window = min(sizes["size"][1:])  # nothing is padded in training
    model.window_stride = 1
    guidance, trunk = model.backbone.bottom_up.guidance, model.backbone.bottom_up.trunk
    guidance.fused_level = f"res{2 + sizes['score_concat_index']}"
    guidance.auxiliary.update(weight=sizes["aux_weight"], ignore_value=sizes["ignore_index"])
    if "out_indices" in sizes:
        trunk.taps = [f"block{i}" for i in sizes["out_indices"]]


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("segmentor", "ade20k_rn50_denseclip_released"),
        ("segmentor_vit", "ade20k_vitb16_denseclip_released"),
    ],
)
def test_segmentor(build: Any, file: str, config: str) -> None:
    model, golden = build(file, config, segmentation_sizes)
    images, labels = golden.arrays["image"], golden.arrays["label"][:, 0].long()
    found = segmentor_outputs(model, images, golden.sizes["class_tokens"])
    train_without_noise(model, model.sem_seg_head, model.guided.guidance.text)
    inputs = [{"image": i, "sem_seg": s} for i, s in zip(images, labels, strict=True)]
    losses = model(inputs)
    assert losses.keys() == {"loss_sem_seg", "loss_aux"}
    total = losses["loss_sem_seg"] + losses["loss_aux"]
    found |= {"loss_decode": losses["loss_sem_seg"], "loss_aux": losses["loss_aux"]}
    found["loss_total"] = total
    names = [n.removeprefix("grad/") for n in golden.arrays if n.startswith("grad/")]
    found |= {f"grad/{n}": g for n, g in gradients(total, model, names).items()}
    assert golden.differences(found) == {}


@torch.no_grad()
def segmentor_outputs(model: Any, images: Tensor, class_tokens: int) -> dict[str, Tensor]:
    text = model.guided.guidance.text
    embedded, guided = model.guided.trunk(images), model.guided.guide(images)
    levels = model.backbone(images)
    model.window, window = max(images.shape[2:]), model.window  # the whole image in one window
    full = model([{"image": images[0]}])[0]["sem_seg"].full()[None]
    model.window = window
    return {
        "token_ids": F.pad(text.tokens, (0, class_tokens - text.tokens.shape[1])),
        "text": text(),
        "text_refined": guided.text,
        "score_map": guided.scores,
        "z_global": embedded[POOLED_EMBEDDING],
        "z_local": embedded[DENSE_EMBEDDING],
        "logits": model.sem_seg_head.layers(levels),
        "logits_full_image0": full,
        **levels,
    }


def retinanet_sizes(model: Any, golden: Golden) -> None:
    sizes, classes = golden.sizes, len(golden.names)
    model.backbone.top_block.update(
        in_channels=32 * sizes["width"] + classes, out_channels=sizes["fpn"]
    )
    model.num_classes = classes
    model.head.input_shape[0].channels = sizes["fpn"]
    model.head.conv_dims = [sizes["head"]] * sizes["stacked_convs"]


def test_retinanet(build: Any) -> None:
    config = "coco_retinanet_rn50_denseclip_released"
    model, golden = build("retinanet", config, retinanet_sizes)
    images = golden.arrays["image"]
    instances = [_instances(golden, i) for i in range(len(images))]
    found = retinanet_outputs(model, images, golden.sizes["class_tokens"])
    found |= box_loss(model, found["score_map_stride4"], instances)

    train_without_noise(model, model.guided.guidance.text)
    inputs = [{"image": i, "instances": x} for i, x in zip(images, instances, strict=True)]
    with EventStorage():
        losses = model(inputs)
        model.anchor_matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
        stock = model(inputs)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_aux"}
    found |= {"loss_cls": losses["loss_cls"], "loss_bbox": losses["loss_box_reg"]}
    found |= {"stock_matcher/loss_cls": stock["loss_cls"]}
    found |= {"stock_matcher/loss_bbox": stock["loss_box_reg"]}
    found["loss_seg"] = losses["loss_aux"]
    for prefix, loss in (
        ("grad_loss_seg/", losses["loss_aux"]),
        ("grad_loss_total/", sum(losses.values())),
    ):
        names = [n.removeprefix(prefix) for n in golden.arrays if n.startswith(prefix)]
        found |= {prefix + n: g for n, g in gradients(loss, model, names).items()}
    assert golden.differences(found) == {}


def _instances(golden: Golden, image: int) -> Instances:
    chosen = golden.arrays["boxes_image_index"] == image
    instances = Instances(tuple(golden.sizes["size"][1:]))
    instances.gt_boxes = Boxes(golden.arrays["boxes"][chosen])
    instances.gt_classes = golden.arrays["labels"][chosen]
    return instances


@torch.no_grad()
def retinanet_outputs(model: Any, images: Tensor, class_tokens: int) -> dict[str, Tensor]:
    text = model.guided.guidance.text
    embedded, guided = model.guided.trunk(images), model.guided.guide(images)
    scores = guided.scores / model.guided.guidance.temperature
    finest = guided.features["res2"].shape[2:]
    levels = model.backbone(images)
    assert tuple(levels) == tuple(model.head_in_features) == LEVELS
    logits, deltas = model.head(list(levels.values()))
    anchors = model.anchor_generator(list(levels.values()))
    found = {
        "token_ids": F.pad(text.tokens, (0, class_tokens - text.tokens.shape[1])),
        "text_refined": guided.text,
        "score_map": scores,
        "score_map_stride4": F.interpolate(scores, size=finest, mode="bilinear"),
        "z_global": embedded[POOLED_EMBEDDING],
        "z_local": embedded[DENSE_EMBEDDING],
        "c5_fused": guided.features["res5"],
        **levels,
    }
    order = np.argsort(ANCHORS)
    for level, own_logits, own_deltas, boxes in zip(LEVELS, logits, deltas, anchors, strict=True):
        for name, maps in (("cls_score", own_logits), ("bbox_pred", own_deltas)):
            found[f"{name}_{level}"] = maps.unflatten(1, (len(order), -1))[:, order].flatten(1, 2)
        found[f"anchors_{level}"] = boxes.tensor.unflatten(0, (-1, len(order)))[:, order].flatten(
            0, 1
        )
    return found


def box_loss(model: Any, scores: Tensor, instances: list[Instances]) -> dict[str, Tensor]:
    """Targets of the auxiliary loss and its gradient at stride 4."""
    auxiliary = model.guided.guidance.auxiliary
    size = tuple(scores.shape[2:])
    target, mask = box_targets(instances, size, auxiliary.stride, scores.shape[1])
    scores = scores.clone().requires_grad_()
    auxiliary(scores, instances, size)["loss_aux"].backward()
    assert scores.grad is not None
    return {"target": target, "mask": mask, "grad_score_map_stride4": scores.grad}


class GivenLevels(Backbone):
    """Gives the same levels for every image."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.widths = widths
        self.levels: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.levels

    def output_shape(self) -> dict[str, ShapeSpec]:
        names = enumerate(self.widths, start=2)
        return {f"res{i}": ShapeSpec(channels=width, stride=2**i) for i, width in names}


def rcnn_without_guidance(model: Any, golden: Golden) -> None:
    """The file has no trunk; its neck takes levels of other widths than any tower gives."""
    sizes, classes = golden.sizes, len(golden.names)
    model._target_ = GeneralizedRCNN
    model.backbone.bottom_up = L(GivenLevels)(widths=sizes["widths"])
    model.backbone.out_channels = sizes["fpn"]
    model.update(pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    model.proposal_generator.head.in_channels = sizes["fpn"]
    heads = model.roi_heads
    heads.num_classes = classes
    heads.box_head.input_shape.channels = heads.mask_head.input_shape.channels = sizes["fpn"]
    heads.box_head.fc_dims = [sizes["fc"]] * len(heads.box_head.fc_dims)
    heads.box_predictor.input_shape.channels = sizes["fc"]
    heads.mask_head.conv_dims = [sizes["mask"]] * (sizes["mask_convs"] + 1)


@torch.no_grad()
def test_mask_rcnn(golden_dir: Path, tmp_path: Path) -> None:
    golden = Golden(golden_dir / "denseclip_maskrcnn_heads.npz")
    cfg = model_zoo.get_config(
        "projects/denseclip/configs/coco_mask_rcnn_rn50_denseclip_released.py"
    )
    rcnn_without_guidance(cfg.model, golden)
    model = instantiate(cfg.model).eval()
    path = golden.write(tmp_path / "released.pth")
    load_strictly(model, from_released(read_released(path).state), path)
    inputs = {name: golden.arrays.pop(name) for name in RCNN_INPUTS}
    model.backbone.bottom_up.levels = {f"res{i}": inputs[f"level{i}"] for i in (2, 3, 4, 5)}
    assert golden.differences(dict(rcnn_outputs(model, inputs, golden))) == {}


RCNN_INPUTS = (*(f"level{i}" for i in (2, 3, 4, 5)), "roi_features", "proposals", "mask_features")


def rcnn_outputs(
    model: Any, inputs: dict[str, Tensor], golden: Golden
) -> Iterator[tuple[str, Tensor]]:
    height, width = golden.sizes["image_size"]
    levels = model.backbone(torch.zeros(1, 3, height, width))
    rpn, heads = model.proposal_generator, model.roi_heads
    assert tuple(levels) == tuple(rpn.in_features)
    yield from levels.items()
    maps = list(levels.values())
    for kind, outputs in zip(("cls", "reg"), rpn.rpn_head(maps), strict=True):
        yield from ((f"rpn_{kind}_{n}", x) for n, x in zip(levels, outputs, strict=True))
    anchors = zip(levels, rpn.anchor_generator(maps), strict=True)
    yield from ((f"rpn_anchors_{name}", boxes.tensor) for name, boxes in anchors)
    scores, deltas = heads.box_predictor(heads.box_head(inputs["roi_features"]))
    yield "cls_score", scores
    yield "bbox_pred_times2", 2 * deltas
    transform = heads.box_predictor.box2box_transform
    boxes = Boxes(transform.apply_deltas(2 * deltas, inputs["proposals"]).reshape(-1, 4))
    boxes.clip((height, width))
    yield "decoded_boxes", boxes.tensor.reshape(len(deltas), -1)
    yield "mask_logits", heads.mask_head.layers(inputs["mask_features"])
