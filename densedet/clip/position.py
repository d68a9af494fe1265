"""Position information at any grid size: resampled tables and recomputed rotary tables."""

import math
from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.errors import ConfigError

Grid = tuple[int, int]
PositionMode = Literal["bicubic", "bilinear", "crop"]


def resample_positions(
    table: Tensor, grid: Grid, native: Grid | None = None, mode: PositionMode = "bicubic"
) -> Tensor:
    """Bring a learned position table to another grid; the first (CLS or mean) entry is kept.

    "bicubic" (CLIPSelf, arXiv 2310.01403) and "bilinear" (DenseCLIP, arXiv 2112.01518, for
    segmentation) resample with ``align_corners=False`` and **without antialiasing**. timm's own
    resampler antialiases, which is another kernel even when it enlarges. "crop" (DenseCLIP for
    detection) takes the first rows and columns of the table as they are. Differentiable.

    Args:
        table: ``[1 + gh * gw, C]`` or ``[1, 1 + gh * gw, C]``, row-major after the first entry.
        grid: the rows and columns wanted.
        native: the rows and columns of the table; None for a square one.
        mode: "bicubic", "bilinear" or "crop".

    Returns:
        A table of the same rank and dtype for ``grid``; ``table`` itself if the grid is the native
        one.

    Raises:
        ValueError: the table has no ``native`` (or no square) grid.
        ConfigError: the table is too small to crop.
    """
    cells = table.shape[-2] - 1
    native = native or (math.isqrt(cells), math.isqrt(cells))
    if native[0] * native[1] != cells:
        raise ValueError(f"a position table of {cells} + 1 entries is no grid of {native}")
    # a traced program of any size must not leave this size out; there the resampling is exact
    if not torch.compiler.is_compiling() and grid == native:
        return table
    flat = table.reshape(cells + 1, -1)
    if mode == "crop":
        cells_at_grid = _crop(flat[1:].unflatten(0, native), grid).flatten(0, 1)
    else:
        image = flat[1:].float().T.reshape(1, -1, *native)
        image = F.interpolate(image, grid, mode=mode, align_corners=False, antialias=False)
        cells_at_grid = image.flatten(2)[0].T.to(table.dtype)
    resampled = torch.cat([flat[:1], cells_at_grid])
    return resampled if table.ndim == 2 else resampled[None]


def _crop(image: Tensor, grid: Grid) -> Tensor:
    """The top left corner of ``[gh, gw, C]``."""
    if grid[0] > image.shape[0] or grid[1] > image.shape[1]:
        raise ConfigError(
            f"positions of {image.shape[0]}x{image.shape[1]} cells cannot be cropped to "
            f"{grid[0]}x{grid[1]} (rows x columns): give smaller images, make the table with a "
            "larger grid, or use the positions 'bilinear'"
        )
    return image[: grid[0], : grid[1]]


def rotary_table(
    grid: Grid,
    dim: int,
    reference: Grid,
    temperature: float = 10000.0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Axial rotary table of EVA-02 (arXiv 2303.11331) for a grid of any size.

    Positions run over the pretraining grid whatever the size: ``t_i = i / n * reference``; the
    first half of the channels turns with the row, the second with the column, each frequency on two
    adjacent channels.

    Args:
        grid: rows and columns.
        dim: channels of a head, a multiple of 4.
        reference: rows and columns of the grid that the frequencies were made for.
        temperature: base of the frequencies.
        device: where to compute.

    Returns:
        sine and cosine, each ``[rows * columns, dim]`` fp32, tokens row-major.
    """
    exponents = torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4)
    frequencies = 1.0 / temperature**exponents
    angles = [
        (torch.arange(n, device=device, dtype=torch.float32) / n * size)[:, None] * frequencies
        for n, size in zip(grid, reference, strict=True)
    ]
    rows = angles[0][:, None].expand(*grid, -1)
    columns = angles[1][None].expand(*grid, -1)
    table = torch.cat([rows, columns], dim=-1).flatten(0, 1).repeat_interleave(2, dim=-1)
    return table.sin(), table.cos()


class RotaryTables:
    """The rotary tables of one tower, keyed by (rows, columns) and device; the latest few are kept.

    The key is never the token count: grids of equal count have different tables.
    """

    def __init__(
        self, dim: int, reference: Grid, temperature: float = 10000.0, capacity: int = 16
    ) -> None:
        """Keep ``capacity`` tables; the rest is as for :func:`rotary_table`."""
        self.dim = dim
        self.reference = reference
        self.temperature = temperature
        self.capacity = capacity
        self._tables: OrderedDict[tuple[Grid, torch.device], Tensor] = OrderedDict()

    def __call__(self, grid: Grid, device: torch.device) -> Tensor:
        """Return sine and cosine side by side, ``[rows * columns, 2 * dim]`` fp32 on ``device``."""
        key = (grid, device)
        if key not in self._tables:
            # Made under inference_mode, a kept table could not be used by a training step later.
            with torch.inference_mode(False):
                pair = rotary_table(grid, self.dim, self.reference, self.temperature, device)
                self._tables[key] = torch.cat(pair, dim=-1)
        self._tables.move_to_end(key)
        while len(self._tables) > self.capacity:
            self._tables.popitem(last=False)
        return self._tables[key]
