"""Supervision of score maps by labels and by boxes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling.guidance import BoxScoreLoss, PixelScoreLoss, box_targets, score_map


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def instances(boxes: Any, classes: Any, size: tuple[int, int]) -> Instances:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.as_tensor(classes, dtype=torch.int64)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)


@pytest.fixture
def golden(golden_dir: Path) -> dict[str, Any]:
    with np.load(golden_dir / "denseclip_det_aux.npz") as file:
        arrays = {k: file[k] for k in file.files}
    config = json.loads(str(arrays.pop("config")))
    return {k: torch.from_numpy(v) for k, v in arrays.items()} | {"config": config}


@pytest.fixture
def targets(golden: dict[str, Any]) -> list[Instances]:
    index, size = golden["boxes_image_index"], tuple(golden["config"]["image_size"])
    return [
        instances(golden["boxes"][index == i], golden["labels"][index == i], size)
        for i in range(golden["config"]["size"][0])
    ]


@pytest.mark.golden
def test_box_targets_equal_the_reference(golden: dict[str, Any], targets: list[Instances]) -> None:
    size = tuple(golden["score_map_stride4"].shape[-2:])
    target, mask = box_targets(targets, size, 4, golden["config"]["K"])
    assert target.dtype == mask.dtype == torch.bool
    assert torch.equal(target, golden["target"].bool())
    assert torch.equal(mask, golden["mask"].bool())


@pytest.mark.golden
def test_box_loss_equals_the_reference(golden: dict[str, Any], targets: list[Instances]) -> None:
    classes, tau = golden["config"]["K"], golden["config"]["tau"]
    scores = score_map(golden["z_local"], golden["text_refined"], torch.arange(classes), classes)
    assert difference(scores / tau, golden["score_map"]) <= 1e-5
    size = tuple(golden["score_map_stride4"].shape[-2:])
    found = BoxScoreLoss()(scores / tau, targets, size)
    assert list(found) == ["loss_aux"]
    assert difference(found["loss_aux"], golden["loss_seg"]) <= 5e-5
    fine = golden["score_map_stride4"].clone().requires_grad_()
    loss = BoxScoreLoss()(fine, targets, size)["loss_aux"]
    assert difference(loss.detach(), golden["loss_seg"]) <= 5e-5
    loss.backward()
    assert difference(fine.grad, golden["grad_score_map_stride4"]) <= 1e-4


def brute_force(
    images: list[Instances], size: tuple[int, int], stride: int, classes: int
) -> tuple[Tensor, Tensor]:
    height, width = size
    target = torch.zeros(len(images), classes, height, width, dtype=torch.bool)
    for image, found in zip(images, target, strict=True):
        for box, label in zip(image.gt_boxes.tensor.tolist(), image.gt_classes, strict=True):
            x0, y0, x1, y1 = (math.trunc(c / stride) for c in box)
            x0, x1 = (min(max(x, 0), width - 1) for x in (x0, x1))
            y0, y1 = (min(max(y, 0), height - 1) for y in (y0, y1))
            found[label, y0:y1, x0:x1] = True
    return target, target.any(dim=1, keepdim=True)


@pytest.mark.parametrize("stride", [4, 8])
def test_overlapping_boxes_against_brute_force(stride: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = []
    for count in (12, 0, 5):
        first = torch.rand(count, 2, generator=generator) * 60 - 10
        sides = torch.rand(count, 2, generator=generator) * 50
        labels = torch.randint(0, 4, (count,), generator=generator)
        images.append(instances(torch.cat([first, first + sides], dim=1), labels, (64, 64)))
    size = (64 // stride, 64 // stride + 1)
    target, mask = box_targets(images, size, stride, 4)
    expected, covered = brute_force(images, size, stride, 4)
    assert torch.equal(target, expected) and torch.equal(mask, covered)
    assert (target.sum(dim=1) > 1).any()
    assert not target[:, :, -1].any() and not target[:, :, :, -1].any()

    logits = torch.randn(3, 4, *size, generator=generator)
    found = BoxScoreLoss(weight=2.0, stride=stride)(logits, images, size)["loss_aux"]
    inside = covered.expand_as(expected)
    plain = F.binary_cross_entropy_with_logits(logits[inside], expected[inside].float())
    torch.testing.assert_close(found, 2 * plain)


def test_a_thin_box_covers_nothing() -> None:
    thin = [[8.0, 8.0, 11.0, 40.0], [8.0, 21.0, 40.0, 23.9]]
    target, mask = box_targets([instances(thin, [0, 1], (64, 64))], (16, 16), 4, 2)
    assert not target.any() and not mask.any()
    _, mask = box_targets([instances([[8.0, 8.0, 12.0, 12.0]], [0], (64, 64))], (16, 16), 4, 2)
    assert mask.nonzero().tolist() == [[0, 0, 2, 2]]


@pytest.mark.parametrize("boxes", [[], [[8.0, 8.0, 11.0, 40.0]]])
def test_no_covered_location(boxes: list[list[float]]) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    images = [instances(boxes, [0] * len(boxes), (64, 64))]
    loss = BoxScoreLoss()(logits, images, (16, 16))["loss_aux"]
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


def test_extreme_scores_cost_a_finite_amount() -> None:
    logits = torch.full((1, 1, 4, 4), -500.0)
    images = [instances([[0.0, 0.0, 16.0, 16.0]], [0], (16, 16))]
    assert BoxScoreLoss()(logits, images, (4, 4))["loss_aux"].item() == 500


def labels(ignored: int = 3) -> Tensor:
    values = torch.randint(0, 5, (2, 12, 8), generator=torch.Generator().manual_seed(0))
    values[:, :ignored] = 255
    return values


@pytest.mark.parametrize("mean", ["valid", "all"])
def test_pixel_loss(mean: str) -> None:
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    fine = F.interpolate(logits, (12, 8), mode="bilinear", align_corners=False)
    costs = -fine.log_softmax(dim=1).gather(1, labels().clamp(max=4)[:, None])[:, 0]
    valid = costs[:, 3:]
    expected = valid.mean() if mean == "valid" else valid.sum() / costs.numel()
    found = PixelScoreLoss(mean=mean)(logits, labels(), (3, 4))
    assert list(found) == ["loss_aux"]
    torch.testing.assert_close(found["loss_aux"], 0.4 * expected)


@pytest.mark.parametrize("mean", ["valid", "all"])
def test_no_labelled_pixel(mean: str) -> None:
    logits = torch.randn(2, 5, 3, 4, requires_grad=True)
    loss = PixelScoreLoss(mean=mean)(logits, labels(12))["loss_aux"]
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


def test_another_ignored_value() -> None:
    logits = torch.randn(2, 5, 12, 8, generator=torch.Generator().manual_seed(1))
    other = torch.where(labels() == 255, -1, labels())
    found = PixelScoreLoss(ignore_value=-1)(logits, other)["loss_aux"]
    torch.testing.assert_close(found, PixelScoreLoss()(logits, labels())["loss_aux"])


def test_unknown_mean() -> None:
    with pytest.raises(ConfigError, match="'some'"):
        PixelScoreLoss(mean="some")
