"""Pillow's antialiased bicubic filter as matrices.

Keys' kernel (1981) with a = -0.5, its support growing with the reduction; the weights of a pixel
sum to one over the pixels of the window, and are rounded to the fixed point that Pillow uses.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_PRECISION = 22  # bits behind the point of Pillow's weights for 8-bit images


class Axis(NamedTuple):
    """How a side of a window becomes pixels ``offset .. offset + length - 1`` of the square."""

    side: int
    length: int
    offset: int


class Tile(NamedTuple):
    """Rows ``first .. last - 1`` of a weight matrix, not zero only in ``start .. stop - 1``."""

    first: int
    last: int
    start: int
    stop: int


class Weights(NamedTuple):
    """Weights ``[N, size, longest side]`` and the pieces to multiply by.

    The tiles cover ``begin .. end - 1``; the other rows are zero for all windows.
    """

    matrices: Tensor
    tiles: list[Tile]

    @property
    def begin(self) -> int:
        return self.tiles[0].first

    @property
    def end(self) -> int:
        return self.tiles[-1].last

    def piece(self, tile: Tile) -> Tensor:
        return self.matrices[:, tile.first : tile.last, tile.start : tile.stop]


def resize_weights(axes: list[Axis], size: int, device: torch.device) -> Weights:
    """The matrices that resize a side of each window into a square of side ``size``.

    In float64, and in float32 on MPS, which has no other.
    """
    first, values = _filter_taps(axes, size)
    taps, side = values.shape[2], max(axis.side for axis in axes)
    # The taps of a row have places of their own, some behind the end of the window with weight 0.
    index = first.to(device)[..., None] + torch.arange(taps, device=device)
    values = values.to(torch.float32 if device.type == "mps" else torch.float64).to(device)
    matrices = values.new_zeros(len(axes), size, side + taps).scatter_(2, index, values)
    # A small tile wastes few products on zeros, a large one is fewer kernels to launch.
    tiles = _tiles(axes, first.tolist(), taps, rows=24 if device.type == "cpu" else 256)
    return Weights(matrices[..., :side], tiles)


def _filter_taps(axes: list[Axis], size: int) -> tuple[Tensor, Tensor]:
    """First pixel ``[N, size]`` and weights ``[N, size, taps]`` of each pixel of the square.

    On the CPU, in float64 and rounded to Pillow's fixed point: the same for every device.
    """
    side, length, offset = torch.tensor(axes, dtype=torch.float64).unbind(1)
    scale = (side / length)[:, None]
    stretch = scale.clamp(min=1)
    place = torch.arange(size, dtype=torch.float64) - offset[:, None]
    centre = (place + 0.5) * scale
    first = (centre - 2 * stretch + 0.5).trunc().clamp(min=0)
    stop = torch.minimum((centre + 2 * stretch + 0.5).trunc(), side[:, None])
    inside = (place >= 0) & (place < length[:, None])
    taps = 2 * math.ceil(2 * float(stretch.max())) + 1
    pixel = first[..., None] + torch.arange(taps)
    values = _cubic((pixel - centre[..., None] + 0.5) / stretch[..., None])
    values *= (pixel < stop[..., None]) & inside[..., None]
    values /= values.sum(dim=2, keepdim=True).where(inside[..., None], 1.0)
    values = (values * 2**_PRECISION).round_() / 2**_PRECISION
    return first.where(inside, 0.0).long(), values


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic kernel with a = -0.5."""
    x = distance.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _tiles(axes: list[Axis], first: list[list[int]], taps: int, rows: int) -> list[Tile]:
    """Cut the rows that are not padding in all windows into tiles, with the pixels they touch."""
    begin = min(axis.offset for axis in axes)
    end = max(axis.offset + axis.length for axis in axes)
    tiles = []
    for low in range(begin, end, rows):
        high = min(low + rows, end)
        starts, stops = [], []
        for axis, pixels in zip(axes, first, strict=True):
            top, bottom = max(low, axis.offset), min(high, axis.offset + axis.length)
            if top < bottom:
                starts.append(pixels[top])
                stops.append(min(axis.side, pixels[bottom - 1] + taps))
        tiles.append(Tile(low, high, min(starts), max(stops)))
    return tiles
