"""From masks in image pixels to the cells of a dense map."""

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 1 << 23  # pixels of the largest temporary


def mask_cells(masks: Tensor, size: int, stride: int, antialias: bool = False) -> Tensor:
    """The cells that masks cover in the dense map of their image, resized and padded to a square.

    The rule of CLIPSelf's evaluation (arXiv 2310.01403): the binary mask is resized by bicubic
    interpolation, longest side to the grid, and the cells with a positive value are taken. Without
    antialiasing, as published, only the 4x4 pixels around the centre of a cell count, so a thin
    mask may have no cell at all; with it masks grow (a disc of radius 8 in 640x480 pixels has 4
    cells without and 16 with it, where its area is that of 2).

    Args:
        masks: ``[K, H, W]`` bool.
        size: side of the square that the image is padded to, on the right and at the bottom.
        stride: pixels of the square per cell.
        antialias: whether to antialias the resizing.

    Returns:
        ``[K, g, g]`` bool with g = size // stride.
    """
    count, height, width = masks.shape
    grid = size // stride
    scale = grid / max(height, width)
    inner = max(1, round(height * scale)), max(1, round(width * scale))
    cells = masks.new_zeros(count, grid, grid, dtype=torch.bool)
    step = max(1, _CHUNK // (height * width))
    for start in range(0, count, step):
        part = masks[start : start + step, None].to(torch.float32)
        values = F.interpolate(part, inner, mode="bicubic", antialias=antialias)[:, 0]
        cells[start : start + step, : inner[0], : inner[1]] = values > 0
    return cells
