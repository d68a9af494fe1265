"""Inference in overlapping windows, whose logits are averaged."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from densedet.errors import ConfigError

Side = int | tuple[int, int]


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
    images: Tensor,
    predict: Callable[[Tensor], Tensor],
    window: Side | None,
    stride: Side | None,
) -> Tensor:
    """The mean of the logits of all windows at every pixel.

    Logits, not probabilities, are averaged (DenseCLIP, arXiv 2112.01518, as published).

    Args:
        images: ``[B, C, H, W]``.
        predict: a part ``[B, C, h, w]`` to logits ``[B, K, h, w]``; h and w are those of the
            window, or less along an axis where the image is smaller.
        window: its side, or (height, width), pixels; None for whole images.
        stride: from window to window, likewise.

    Returns:
        ``[B, K, H, W]`` fp32.

    Raises:
        ConfigError: see `windows`.
    """
    if window is None or stride is None:
        return predict(images).float()
    height, width = images.shape[-2:]
    total: Tensor | None = None
    count = torch.zeros(height, width, device=images.device)
    for top, left, bottom, right in windows((height, width), window, stride):
        logits = predict(images[..., top:bottom, left:right]).float()
        if total is None:
            total = logits.new_zeros(*logits.shape[:2], height, width)
        total[..., top:bottom, left:right] += logits
        count[top:bottom, left:right] += 1
    assert total is not None
    return total / count


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
