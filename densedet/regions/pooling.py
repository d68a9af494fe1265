"""Pooling a dense map over boxes and masks.

RoIAlign (He et al., Mask R-CNN, arXiv 1703.06870) with one output cell and adaptive sampling puts a
regular grid of bilinear samples into the box, so its weight on cell (y, x) is a product ``wy[y] *
wx[x]``. The pooled vectors of an image are one matrix product of these weights and the map: the
same on CPU and CUDA, deterministic in the backward pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_CHUNK = 1 << 24  # elements of the largest temporary


def pool_boxes(dense: Tensor, boxes: Sequence[Tensor], stride: float) -> Tensor:
    """RoIAlign 1x1 of a dense map: ``aligned``, adaptive sampling, scale ``1 / stride``.

    Equal to ``torchvision.ops.roi_align(dense, boxes, 1, 1 / stride, -1, True)`` up to rounding,
    also for boxes that leave the map, tiny boxes and degenerate ones (zeros). Differentiable in
    ``dense``, not in the boxes. The vectors are not normalised again.

    Args:
        dense: ``[B, D, h, w]`` of any floating dtype.
        boxes: for each image ``[K_i, 4]``, (x0, y0, x1, y1) in image pixels; may be empty.
        stride: pixels per cell of the map.

    Returns:
        ``[K, D]`` with K = sum of K_i, image by image, in the dtype of ``dense``.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_batch(dense, boxes, "boxes")
    for i, image_boxes in enumerate(boxes):
        if image_boxes.ndim != 2 or image_boxes.shape[1] != 4:
            raise ValueError(f"boxes of image {i} must be [K, 4], got {tuple(image_boxes.shape)}")
    height, width = dense.shape[2:]
    counts = [len(image_boxes) for image_boxes in boxes]
    kind = torch.promote_types(dense.dtype, torch.float32)
    corners = torch.cat([b.detach().to(dense.device, kind) for b in boxes])
    corners = corners * (1.0 / stride) - 0.5
    rows = _axis_weights(corners[:, 1], corners[:, 3], height).split(counts)
    columns = _axis_weights(corners[:, 0], corners[:, 2], width).split(counts)
    step = max(1, _CHUNK // (height * width))
    pooled = [
        _weighted(image, (r[:, :, None] * c[:, None, :]).flatten(1))
        for image, image_rows, image_columns in zip(dense, rows, columns, strict=True)
        for r, c in zip(image_rows.split(step), image_columns.split(step), strict=True)
    ]
    return torch.cat(pooled)


def pool_masks(dense: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Mean of a dense map over the cells of masks, denominator + 1e-12 (an empty mask gives zeros).

    Args:
        dense: ``[B, D, h, w]`` of any floating dtype.
        masks: for each image ``[K_i, h, w]``, boolean or non-negative weights.

    Returns:
        ``[K, D]``, image by image, in the dtype of ``dense``; not normalised.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_batch(dense, masks, "masks")
    pooled = []
    kind = torch.promote_types(dense.dtype, torch.float32)
    for i, (image, image_masks) in enumerate(zip(dense, masks, strict=True)):
        if image_masks.ndim != 3 or image_masks.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"masks of image {i} must be [K, {image.shape[1]}, {image.shape[2]}] like the map, "
                f"got {tuple(image_masks.shape)}"
            )
        weights = image_masks.detach().to(dense.device, kind).flatten(1)
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-12)
        pooled.append(_weighted(image, weights))
    return torch.cat(pooled)


def box_masks(boxes: Tensor, grid: tuple[int, int], stride: float) -> Tensor:
    """Cells of boxes: corners in cells truncated to integers, the last row and column excluded.

    The rule of CLIPSelf's attention-masked region tokens (arXiv 2310.01403); the mask of a small
    box may be empty.

    Args:
        boxes: ``[K, 4]``, (x0, y0, x1, y1) in image pixels.
        grid: (h, w) of the map.
        stride: pixels per cell.

    Returns:
        ``[K, h, w]`` bool.
    """
    x0, y0, x1, y1 = (boxes / stride).long().unbind(1)
    rows = torch.arange(grid[0], device=boxes.device)
    columns = torch.arange(grid[1], device=boxes.device)
    in_rows = (rows >= y0[:, None]) & (rows < y1[:, None])
    in_columns = (columns >= x0[:, None]) & (columns < x1[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def _check_batch(dense: Tensor, regions: Sequence[Tensor], what: str) -> None:
    if dense.ndim != 4:
        raise ValueError(f"the dense map must be [B, D, h, w], got {tuple(dense.shape)}")
    if len(regions) != len(dense) or not len(dense):
        raise ValueError(f"{len(regions)} lists of {what} for a batch of {len(dense)} images")


def _weighted(image: Tensor, weights: Tensor) -> Tensor:
    """``weights [K, h * w]``, fp32 at least, times ``image [D, h, w]``: ``[K, D]`` in its dtype."""
    return _product(weights, image.flatten(1).T.to(weights.dtype)).to(image.dtype)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product in the operands' own dtype, also under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def _axis_weights(start: Tensor, end: Tensor, size: int) -> Tensor:
    """RoIAlign's bilinear weights along one axis, averaged over its samples: ``[K] -> [K, size]``.

    ``n = ceil(end - start)`` samples at the centres of n equal parts. A sample outside ``[-1,
    size]`` counts in the mean but has no weight; one just outside the cell centres belongs to the
    border cell.
    """
    counts = (end - start).ceil()
    # n > 1 parts are longer than half a cell: at most this many of them can meet the map.
    window = 2 * (size + 3)
    if start.device.type == "cpu" and len(start):
        window = min(window, max(1, int(counts.max())))
    step = max(1, _CHUNK // (window * size))
    chunks = zip(start.split(step), end.split(step), counts.split(step), strict=True)
    return torch.cat([_sampled(s, e, n, size, window) for s, e, n in chunks])


def _sampled(start: Tensor, end: Tensor, counts: Tensor, size: int, window: int) -> Tensor:
    length = (end - start)[:, None]
    start, counts = start[:, None], counts[:, None]
    part = length / counts
    first = ((-1 - start) / part - 1.5).floor().clamp(min=0).nan_to_num(0, 0)
    index = first + torch.arange(window, device=start.device, dtype=start.dtype)
    position = start + (index + 0.5) * length / counts
    valid = (index < counts) & (position >= -1) & (position <= size)
    position = position.clamp(0, size - 1).nan_to_num(0)
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    bilinear = (1 - (position[:, :, None] - cells).abs()).clamp(min=0)
    share = valid.to(start.dtype) / counts.clamp(min=1)
    return _product(share[:, None], bilinear)[:, 0]
