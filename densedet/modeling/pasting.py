"""Masks of detections in the size of the image, computed on the pixels of their boxes alone.

Detectron2 samples a mask [M, M] bilinearly at the centre of every pixel, and takes what is at least
0.5. Bilinear sampling of a grid is separable: ``rows @ mask @ columns`` with one hat function for
each row and column of pixels. A pixel whose centre lies outside the box weighs less than half, so
that it never belongs to the mask.
"""

from typing import Any

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import BitMasks, Instances, ROIMasks
from torch import Tensor

THRESHOLD = 0.5
"""A pixel belongs to a mask from this probability on."""


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Detectron2's `paste_masks_in_image` with its threshold of 0.5, equal to it but for rounding.

    Args:
        masks: [R, M, M] probabilities.
        boxes: [R, 4], (x0, y0, x1, y1) in pixels; they may hang over the image's border. An empty
            box has an empty mask.
        size: (H, W) of the image, pixels.

    Returns:
        [R, H, W] bool.
    """
    pasted = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    if not len(masks):
        return pasted
    masks, boxes = masks.float(), boxes.float()
    top, rows = _pixels(boxes[:, 1], boxes[:, 3], size[0])
    left, columns = _pixels(boxes[:, 0], boxes[:, 2], size[1])
    windows = torch.stack([top, rows, left, columns], dim=1).tolist()  # the one wait for a device
    by_row = _weights(boxes[:, 1], boxes[:, 3], top, rows, masks.shape[1])
    by_column = _weights(boxes[:, 0], boxes[:, 2], left, columns, masks.shape[2])
    parts = zip(
        windows,
        by_row.split([window[1] for window in windows]),
        masks.unbind(),
        by_column.split([window[3] for window in windows]),
        strict=True,
    )
    for image, (window, down, mask, across) in zip(pasted.unbind(), parts, strict=True):
        y, height, x, width = window
        if height and width:
            values = down @ mask @ across.T
            torch.ge(values, THRESHOLD, out=image[y : y + height, x : x + width])
    return pasted


def _pixels(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first of the pixels whose centres lie between two sides (R,), and how many they are."""
    first = (low - 0.5).ceil().clamp(0, size).long()
    end = (high - 0.5).floor().add(1).clamp(0, size).long()
    return first, torch.where(high > low, end - first, 0).clamp(min=0)


def _weights(low: Tensor, high: Tensor, first: Tensor, count: Tensor, cells: int) -> Tensor:
    """What M cells between two sides weigh at each pixel: [all pixels of all boxes, M]."""
    box = torch.arange(len(count), device=count.device).repeat_interleave(count)
    start = first - (count.cumsum(0) - count)
    pixel = torch.arange(len(box), device=count.device) + start[box]
    place = (pixel + 0.5 - low[box]) / (high - low)[box] * cells - 0.5
    distance = place[:, None] - torch.arange(cells, device=count.device)
    return (1 - distance.abs()).clamp(min=0)


class _PastedMasks(ROIMasks):
    """`ROIMasks` that are pasted by `paste_masks`."""

    def __getitem__(self, item: Any) -> "_PastedMasks":
        return _PastedMasks(self.tensor[item])

    def to_bitmasks(
        self, boxes: Any, height: Any, width: Any, threshold: float = THRESHOLD
    ) -> BitMasks:
        if torch.jit.is_tracing() or threshold != THRESHOLD:
            pasted = paste_masks_in_image(self.tensor, boxes.tensor, (height, width), threshold)
            return BitMasks(pasted)
        return BitMasks(paste_masks(self.tensor, boxes.tensor, (height, width)))


def postprocess(instances: Instances, height: int, width: int) -> Instances:
    """Detectron2's `detector_postprocess`, with masks (R, 1, M, M) pasted by `paste_masks`."""
    if instances.has("pred_masks") and isinstance(instances.pred_masks, Tensor):
        fields = instances.get_fields()
        masks = _PastedMasks(instances.pred_masks[:, 0])
        instances = Instances(instances.image_size, **{**fields, "pred_masks": masks})
    return detector_postprocess(instances, height, width)


class PastesMasks(GeneralizedRCNN):
    """`GeneralizedRCNN` whose masks are pasted by `paste_masks`."""

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """As `GeneralizedRCNN.inference`."""
        found = super().inference(batched_inputs, detected_instances, False)
        if not do_postprocess:
            return found
        return [
            {"instances": postprocess(instances, *output_size(record, instances))}
            for record, instances in zip(batched_inputs, found, strict=True)
        ]


def output_size(record: dict[str, Any], instances: Instances) -> tuple[int, int]:
    """(H, W) that the result of a record is wanted in."""
    height, width = instances.image_size
    return record.get("height", height), record.get("width", width)
