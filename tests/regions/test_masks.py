import json

import numpy as np
import pytest
import torch

from densedet.regions import mask_cells


def disc(radius: float, height: int = 480, width: int = 640) -> torch.Tensor:
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - 240.3) ** 2 + (columns - 320.7) ** 2 <= radius**2
    return torch.from_numpy(inside)


@pytest.mark.golden
def test_reference_masks(golden_dir):
    described = json.loads((golden_dir / "region_metric.json").read_text())["masks"]
    with np.load(golden_dir / "region_metric.npz") as arrays:
        for mask in described:
            height, width = mask["hw"]
            bits = np.unpackbits(arrays[f"mask{mask['index']}/packed_bits"])[: height * width]
            pixels = torch.from_numpy(bits.astype(bool)).reshape(1, height, width)
            side = mask["side"]

            cells = mask_cells(pixels, side * 16, 16)[0]
            antialiased = mask_cells(pixels, side * 16, 16, antialias=True)[0]

            name = f"mask{mask['index']}"
            assert cells.numpy().tolist() == arrays[f"{name}/cells"].tolist(), mask["what"]
            assert cells.sum() == mask["cells"]
            assert antialiased.sum() == mask["cells_if_antialiased"]


@pytest.mark.parametrize(
    ("radius", "cells", "antialiased"), [(8, 4, 16), (20, 14, 38), (40, 54, 96), (160, 818, 950)]
)
def test_antialiasing_dilates(radius, cells, antialiased):
    mask = disc(radius)[None]
    assert mask_cells(mask, 1024, 16).sum() == cells
    assert mask_cells(mask, 1024, 16, antialias=True).sum() == antialiased


@pytest.mark.parametrize(("size", "inner"), [((40, 80), (4, 8)), ((80, 30), (8, 3))])
def test_longest_side_fills_the_grid_and_the_rest_is_padding(size, inner):
    cells = mask_cells(torch.ones(1, *size, dtype=torch.bool), 64, 8)[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[: inner[0], : inner[1]] = True
    assert torch.equal(cells, expected)


def test_enlarging_a_small_mask_reaches_half_a_pixel_further():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[0, :, 2:] = True
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:, 6:] = True  # cells less than a pixel from the centres of column 2
    assert torch.equal(mask_cells(mask, 64, 4)[0], expected)


def test_no_masks_empty_masks_and_very_thin_images():
    assert mask_cells(torch.zeros(0, 5, 9, dtype=torch.bool), 64, 16).shape == (0, 4, 4)
    assert not mask_cells(torch.zeros(2, 50, 90, dtype=torch.bool), 64, 16).any()
    assert mask_cells(torch.ones(1, 1, 500, dtype=torch.bool), 64, 16)[0, 0].all()


def test_many_masks_are_those_of_each_alone():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 480, 640, generator=generator) > 0.995  # more than are resized at once
    alone = torch.cat([mask_cells(mask[None], 640, 16) for mask in masks])
    assert torch.equal(mask_cells(masks, 640, 16), alone)
    assert 0 < alone.sum() < alone.numel()
