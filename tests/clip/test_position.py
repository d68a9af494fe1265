"""Resampled position tables and rotary tables."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import build_rotary_pos_embed

from densedet.cli import exit_code
from densedet.clip.position import RotaryTables, resample_positions, rotary_table
from densedet.errors import ConfigError


def kernel(x: float) -> float:
    """Keys' cubic convolution with a = -0.75."""
    x = abs(x)
    if x <= 1:
        return 1.25 * x**3 - 2.25 * x**2 + 1
    return -0.75 * x**3 + 3.75 * x**2 - 6 * x + 3 if x < 2 else 0.0


def test_14_to_64_is_cubic_convolution_without_antialiasing() -> None:
    side, new = 14, 64
    # A table with two channels whose values can be written down.
    table = torch.zeros(1, 1 + side * side, 2)
    table[0, 0] = torch.tensor([7.0, -7.0])
    for r in range(side):
        for c in range(side):
            table[0, 1 + r * side + c] = torch.tensor([math.sin(3 * r + c), (r * c) % 5])
    grid = table[0, 1:].reshape(side, side, 2)
    found = resample_positions(table, (new, new))
    assert found.shape == (1, 1 + new * new, 2)
    assert torch.equal(found[0, 0], table[0, 0])
    for row, column in [(0, 0), (1, 2), (31, 32), (40, 7), (63, 63), (5, 60)]:
        y, x = ((i + 0.5) * side / new - 0.5 for i in (row, column))
        expected = torch.zeros(2)
        for r in range(math.floor(y) - 1, math.floor(y) + 3):
            for c in range(math.floor(x) - 1, math.floor(x) + 3):
                inside = grid[min(max(r, 0), side - 1), min(max(c, 0), side - 1)]
                expected += kernel(y - r) * kernel(x - c) * inside
        torch.testing.assert_close(found[0, 1 + row * new + column], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("new", [(64, 64), (7, 9)])
def test_differs_from_the_antialiased_kernel(new: tuple[int, int]) -> None:
    table = torch.randn(1 + 14 * 14, 4, generator=torch.Generator().manual_seed(0))
    image = table[1:].T.reshape(1, 4, 14, 14)
    smooth = F.interpolate(image, new, mode="bicubic", antialias=True)
    found = resample_positions(table, new)[1:].T.reshape(1, 4, *new)
    assert (found - smooth).abs().max() > 0.05


def test_bilinear_weights_by_hand() -> None:
    table = torch.tensor([5.0, 0.0, 1.0, 10.0, 21.0])[:, None]
    found = resample_positions(table, (2, 4), mode="bilinear")
    assert found[0] == 5
    top = torch.tensor([0.0, 0.25, 0.75, 1.0])
    bottom = torch.tensor([10.0, 12.75, 18.25, 21.0])
    torch.testing.assert_close(found[1:, 0].reshape(2, 4), torch.stack([top, bottom]))


def test_crop_takes_the_first_rows_and_columns() -> None:
    table = torch.cat([torch.tensor([-1.0]), torch.arange(12.0)])[None, :, None]
    found = resample_positions(table, (2, 3), native=(3, 4), mode="crop")
    assert found[0, :, 0].tolist() == [-1, 0, 1, 2, 4, 5, 6]
    assert resample_positions(table, (3, 4), native=(3, 4), mode="crop") is table


@pytest.mark.parametrize("grid", [(4, 2), (2, 5)])
def test_crop_of_a_table_that_is_too_small(grid: tuple[int, int]) -> None:
    message = f"3x4 cells cannot be cropped to {grid[0]}x{grid[1]} .rows x columns"
    with pytest.raises(ConfigError, match=message):
        resample_positions(torch.zeros(13, 2), grid, native=(3, 4), mode="crop")


def test_a_tool_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        resample_positions(torch.zeros(13, 2), (4, 4), native=(3, 4), mode="crop")

    assert exit_code(main) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: positions of 3x4 cells") and error.count("\n") == 1


def test_native_grid_returns_the_table_itself() -> None:
    table = torch.randn(1 + 6, 4)
    assert resample_positions(table, (2, 3), native=(2, 3)) is table


def test_non_square_native_grid_keeps_rows_and_columns() -> None:
    rows = torch.arange(2.0).repeat_interleave(3)  # the value is the row
    table = torch.cat([torch.zeros(1), rows])[:, None]
    found = resample_positions(table, (2, 6), native=(2, 3))[1:, 0].reshape(2, 6)
    torch.testing.assert_close(found, torch.tensor([[0.0] * 6, [1.0] * 6]))


def test_gradient_reaches_the_table() -> None:
    table = torch.zeros(1 + 4, 2, requires_grad=True)
    resample_positions(table, (3, 5)).sum().backward()
    # Every column of the resampling matrix is used, and its rows sum to one.
    assert table.grad is not None
    torch.testing.assert_close(table.grad[1:].sum(), torch.tensor(30.0))
    assert torch.equal(table.grad[0], torch.ones(2))


def test_half_precision_table_keeps_its_dtype() -> None:
    table = torch.randn(1 + 4, 2).half()
    assert resample_positions(table, (4, 4)).dtype == torch.float16


@pytest.mark.parametrize("shape", [(6, 4), (1, 7, 4)])
def test_table_that_is_no_grid(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no grid"):
        resample_positions(torch.zeros(shape), (2, 2))


@pytest.mark.parametrize("grid", [(14, 14), (40, 40), (4, 7), (9, 2)])
def test_rotary_table_is_the_formula(grid: tuple[int, int]) -> None:
    sine, cosine = rotary_table(grid, 64, (16, 16))
    assert sine.shape == cosine.shape == (grid[0] * grid[1], 64)
    for token in range(0, grid[0] * grid[1], 3):
        row, column = divmod(token, grid[1])
        for channel in (0, 1, 2, 3, 30, 31, 32, 33, 36, 63):
            t = row / grid[0] * 16 if channel < 32 else column / grid[1] * 16
            angle = t * 10000 ** (-2 * (channel % 32 // 2) / 32)
            assert sine[token, channel].item() == pytest.approx(math.sin(angle), abs=2e-6)
            assert cosine[token, channel].item() == pytest.approx(math.cos(angle), abs=2e-6)


@pytest.mark.parametrize("grid", [(14, 14), (5, 9)])
def test_rotary_table_equals_timm(grid: tuple[int, int]) -> None:
    expected = build_rotary_pos_embed(list(grid), dim=64, in_pixels=False, ref_feat_shape=[16, 16])
    for found, reference in zip(rotary_table(grid, 64, (16, 16)), expected, strict=True):
        torch.testing.assert_close(found, reference, rtol=0, atol=2e-6)


def test_rotary_tables_are_keyed_by_shape_not_by_count() -> None:
    tables = RotaryTables(8, (16, 16))
    cpu = torch.device("cpu")
    wide, tall = tables((2, 8), cpu), tables((8, 2), cpu)
    assert wide.shape == tall.shape
    assert not torch.allclose(wide, tall)
    assert tables((2, 8), cpu) is wide


def test_rotary_tables_are_bounded_and_keep_the_latest() -> None:
    tables = RotaryTables(8, (16, 16), capacity=3)
    cpu = torch.device("cpu")
    first = tables((1, 1), cpu)
    for n in (2, 3):
        tables((n, n), cpu)
    assert tables((1, 1), cpu) is first
    tables((4, 4), cpu)
    assert len(tables._tables) == 3
    assert tables((1, 1), cpu) is first


def test_rotary_table_made_in_inference_mode_can_be_trained_with() -> None:
    tables = RotaryTables(8, (16, 16))
    with torch.inference_mode():
        tables((2, 2), torch.device("cpu"))
    x = torch.ones(4, 16, requires_grad=True)
    (x * tables((2, 2), torch.device("cpu"))).sum().backward()
    assert x.grad is not None
