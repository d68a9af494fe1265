"""Masks pasted on the pixels of their boxes, against Detectron2's `paste_masks_in_image`."""

import pytest
import torch
from detectron2.layers import mask_ops
from detectron2.layers.mask_ops import _do_paste_mask, paste_masks_in_image
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from densedet.modeling.pasting import paste_masks, postprocess


def random_boxes(count, height, width, generator):
    """Inside, across the border, outside, within a pixel, empty, on whole pixels, and huge."""
    scale = torch.tensor([width, height, width, height])
    corners = (3 * torch.rand(count, 2, 2, generator=generator) - 1).sort(dim=1).values
    boxes = corners.flatten(1) * scale
    boxes[::7, 2:] = boxes[::7, :2] + 0.7 * torch.rand(len(boxes[::7]), 2, generator=generator)
    boxes[1::7, 2] = boxes[1::7, 0]
    boxes[2::7] = boxes[2::7].round()
    boxes[3::14] = torch.tensor([-1e5, -2e4, 1e5, 3e4])
    return boxes


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (160, 160), (200, 9)], ids=str)
@pytest.mark.parametrize("cells", [1, 14, 28])
@pytest.mark.parametrize("seed", [0, 1])
def test_masks_are_those_of_detectron2(size, cells, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(70, *size, generator)
    masks = torch.rand(70, cells, cells, generator=generator)
    masks[::3] = masks[::3].round()
    # as on CUDA; on the CPU Detectron2 fails for a box outside the image
    values, _ = _do_paste_mask(masks[:, None], boxes, *size, skip_empty=False)
    sure = ~((values - 0.5).abs() < 1e-4)  # of an empty box it makes NaN, which is no mask
    found = paste_masks(masks, boxes, size)
    assert found.shape == (70, *size) and found.dtype == torch.bool
    assert found[sure].equal((values >= 0.5)[sure])
    assert found.any() and sure.float().mean() > 0.95
    boxes[:, :2].clamp_(max=0.5)
    boxes[:, 2:].clamp_(min=0.5)
    expected = paste_masks_in_image(masks, boxes, size)
    assert (paste_masks(masks, boxes, size) != expected).float().mean() < 1e-2


def test_no_masks():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (3, 5)).shape == (0, 3, 5)


@pytest.mark.parametrize("size", [(64, 48), (31, 200)], ids=str)
def test_instances_are_those_of_detectron2(size, monkeypatch):
    def instances():
        generator = torch.Generator().manual_seed(0)
        return Instances(
            (64, 48),
            pred_boxes=Boxes(random_boxes(40, 64, 48, generator)),
            scores=torch.rand(40, generator=generator),
            pred_masks=torch.rand(40, 1, 28, 28, generator=generator),
        )

    expected = detector_postprocess(instances(), *size)
    monkeypatch.setattr(mask_ops, "_do_paste_mask", None)  # nothing is pasted as Detectron2 does
    found = postprocess(instances(), *size)
    assert found.image_size == expected.image_size
    assert found.scores.equal(expected.scores) and 0 < len(found) < 40
    assert found.pred_boxes.tensor.equal(expected.pred_boxes.tensor)
    assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-5
