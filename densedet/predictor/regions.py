"""Between the cells of a dense map and the pixels of the image."""

import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.predictor.images import PreparedImage
from densedet.regions import pool_boxes, pool_masks


def box_embeddings(dense: Tensor, stride: float, image: PreparedImage, boxes: Tensor) -> Tensor:
    """RoIAlign of a dense map [D, h, w] over boxes [R, 4] in pixels of the image: [R, D].

    What of a box is outside the image does not count.

    Raises:
        ValueError: boxes of another shape, or one without an area inside the image.
    """
    if not len(boxes):
        boxes = boxes.new_zeros(0, 4)  # an empty list has no second axis
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be [R, 4], got {tuple(boxes.shape)}")
    boxes = boxes.to(dense.device, torch.float32)
    height, width = image.size
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height] * 2))
    _refuse_empty(~(inside[:, 2:] > inside[:, :2]).all(dim=1), "box")
    new_height, new_width = image.tensor.shape[1:]
    scale = boxes.new_tensor([new_width / width, new_height / height] * 2)
    return pool_boxes(dense[None], [inside * scale], stride)


def mask_embeddings(dense: Tensor, stride: float, image: PreparedImage, masks: Tensor) -> Tensor:
    """Mean of a dense map [D, h, w] over masks [R, H, W], each cell by the covered share: [R, D].

    Raises:
        ValueError: masks of another shape, or one without a pixel.
    """
    if masks.ndim != 3 or tuple(masks.shape[1:]) != image.size:
        raise ValueError(
            f"masks must be [R, {image.size[0]}, {image.size[1]}] like the image, got "
            f"{tuple(masks.shape)}"
        )
    _refuse_empty(~masks.flatten(1).any(dim=1), "mask")
    cells = [_covered(mask.to(dense.device) != 0, dense, stride, image) for mask in masks]
    shares = torch.stack(cells) if cells else dense.new_zeros(0, *dense.shape[1:])
    return pool_masks(dense[None], [shares])


def map_on_picture(values: Tensor, stride: float, image: PreparedImage) -> Tensor:
    """Interpolate a map [h, w] of cells bilinearly at the pixels of the image: [H, W]."""
    padded = [round(side * stride) for side in values.shape]
    height, width = image.tensor.shape[1:]
    large = F.interpolate(values[None, None], padded, mode="bilinear", align_corners=False)
    shown = large[..., :height, :width]
    return F.interpolate(shown, image.size, mode="bilinear", align_corners=False)[0, 0]


def _covered(mask: Tensor, dense: Tensor, stride: float, image: PreparedImage) -> Tensor:
    """The share of each cell [h, w] that a mask [H, W] covers."""
    rows = _shares(image.size[0], image.tensor.shape[1] / stride, dense.shape[1], dense)
    columns = _shares(image.size[1], image.tensor.shape[2] / stride, dense.shape[2], dense)
    return rows @ mask.to(dense) @ columns.T


def _shares(pixels: int, span: float, cells: int, like: Tensor) -> Tensor:
    """How much of each cell each pixel covers, [cells, pixels]; all pixels cover ``span`` cells."""
    edges = torch.linspace(0, span, pixels + 1, device=like.device)
    lower = torch.arange(cells, device=like.device)[:, None]
    overlap = torch.minimum(edges[1:], lower + 1) - torch.maximum(edges[:-1], lower)
    return overlap.clamp(min=0)


def _refuse_empty(empty: Tensor, what: str) -> None:
    if empty.any():
        first = int(empty.nonzero()[0, 0])
        raise ValueError(f"{what} {first} is empty: it covers nothing of the image")
