"""Inference in overlapping windows, whose logits are averaged."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling.pixel_scores import Interpolated, Part, bilinear_matrix

Side = int | tuple[int, int]
Predict = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]
"""Images ``[1, C, H, W]`` to logits ``[1, K, h, w]`` and the height and width, in pixels, that they
cover: those of the images, or more at the right and the bottom."""


def windows(size: tuple[int, int], window: Side, stride: Side) -> list[tuple[int, int, int, int]]:
    """Windows that cover an image, row by row, each inside it.

    Along each axis there are ``max(0, ceil((size - window) / stride)) + 1``; the last is shifted
    back to the border. An axis shorter than the window has one, which is the whole of it.

    Args:
        size: (height, width) of the image, pixels.
        window: its side, or (height, width), pixels.
        stride: from window to window; at most the window's side.

    Returns:
        (top, left, bottom, right) of each, the last two exclusive.

    Raises:
        ConfigError: sizes that are not positive, or a stride that would leave gaps.
    """
    check_windows(window, stride)
    rows, columns = (
        _intervals(*axis) for axis in zip(size, _pair(window), _pair(stride), strict=True)
    )
    return [(top, left, bottom, right) for top, bottom in rows for left, right in columns]


def slide(
    image: Tensor, predict: Predict, window: Side | None, stride: Side | None, divisor: int = 1
) -> Interpolated:
    """The mean of the logits of all windows at every pixel, computed when it is asked for.

    Logits, not probabilities, are averaged (DenseCLIP, arXiv 2112.01518, as published).

    Args:
        image: ``[C, H, W]``.
        predict: gives the logits of a part of the image, which has the size of the window, or less
            along an axis where the image is smaller.
        window: its side, or (height, width), pixels; None for the whole image.
        stride: from window to window, likewise.
        divisor: the parts are padded with 0 at the right and the bottom to multiples of this.

    Raises:
        ConfigError: see `windows`.
    """
    size = (image.shape[-2], image.shape[-1])
    places = [(0, 0, *size)]
    if window is not None and stride is not None:
        places = windows(size, window, stride)
    rows = _AxisWeights(size[0], {(top, bottom) for top, _, bottom, _ in places}, image.device)
    columns = _AxisWeights(size[1], {(left, right) for _, left, _, right in places}, image.device)
    parts = []
    for top, left, bottom, right in places:
        logits, extent = predict(_padded(image[:, top:bottom, left:right], divisor)[None])
        cells = logits[0].detach().float().movedim(0, -1).contiguous()
        height, width = cells.shape[:2]
        part_rows = rows.matrix(top, bottom, height, extent[0])
        parts.append(Part(cells, part_rows, columns.matrix(left, right, width, extent[1])))
    count = parts[0].logits.shape[-1]
    return Interpolated(parts, torch.arange(count, device=image.device), count)


class _AxisWeights:
    """How the pixels along an axis are made of the cells of windows, which are averaged."""

    def __init__(self, size: int, spans: set[tuple[int, int]], device: torch.device) -> None:
        self.size, self.device = size, device
        self.count = torch.zeros(size)
        for start, stop in spans:
            self.count[start:stop] += 1
        self._known: dict[tuple[int, int, int, int], Tensor] = {}

    def matrix(self, start: int, stop: int, cells: int, extent: int) -> Tensor:
        """[size, cells] of a window whose cells cover ``extent`` pixels from ``start`` on."""
        key = (start, stop, cells, extent)
        if key not in self._known:
            weights = torch.zeros(self.size, cells)
            weights[start:stop] = bilinear_matrix(cells, extent, weights.device)[: stop - start]
            self._known[key] = (weights / self.count[:, None]).to(self.device)
        return self._known[key]


def check_windows(window: Side, stride: Side) -> None:
    """Raise ConfigError if windows of these sizes do not cover every image."""
    for side, step in zip(_pair(window), _pair(stride), strict=True):
        if not 0 < step <= side:
            raise ConfigError(
                f"windows of {side} pixels every {step} leave gaps: the stride must be at least 1 "
                "and at most the window"
            )


def check_optional_windows(window: int | None, stride: int | None) -> None:
    """Raise ConfigError unless there are windows that cover every image, or none at all."""
    if (window is None) is not (stride is None):
        raise ConfigError("window and window_stride: give both, or neither for whole pictures")
    if window is not None and stride is not None:
        check_windows(window, stride)


def _pair(side: Side) -> tuple[int, int]:
    return (side, side) if isinstance(side, int) else side


def _intervals(size: int, window: int, stride: int) -> list[tuple[int, int]]:
    count = max(0, math.ceil((size - window) / stride)) + 1
    ends = [min(i * stride + window, size) for i in range(count)]
    return [(max(end - window, 0), end) for end in ends]


def _padded(image: Tensor, divisor: int) -> Tensor:
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % divisor, 0, -height % divisor))
