"""Windows cover the image, and their logits are averaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling.sliding_window import slide, windows


@pytest.mark.parametrize(
    ("size", "window", "stride", "expected"),
    [
        ((4, 4), 4, 3, [(0, 0, 4, 4)]),
        ((4, 5), 4, 3, [(0, 0, 4, 4), (0, 1, 4, 5)]),
        ((4, 7), 4, 3, [(0, 0, 4, 4), (0, 3, 4, 7)]),
        ((4, 8), 4, 3, [(0, 0, 4, 4), (0, 3, 4, 7), (0, 4, 4, 8)]),
        ((2, 3), 4, 3, [(0, 0, 2, 3)]),
        ((2, 6), 4, 4, [(0, 0, 2, 4), (0, 2, 2, 6)]),
        ((5, 5), (3, 4), (2, 3), [(0, 0, 3, 4), (0, 1, 3, 5), (2, 0, 5, 4), (2, 1, 5, 5)]),
    ],
)
def test_windows(size: Any, window: Any, stride: Any, expected: list[Any]) -> None:
    assert windows(size, window, stride) == expected


def test_windows_cover_every_pixel_inside_the_image() -> None:
    for height, width in [(1, 1), (7, 31), (16, 16), (17, 40), (33, 50)]:
        for window, stride in [(16, 16), (16, 11), (16, 1), (10, 7)]:
            covered = torch.zeros(height, width, dtype=torch.bool)
            for top, left, bottom, right in windows((height, width), window, stride):
                assert min(top, left) >= 0 and bottom <= height and right <= width
                assert bottom - top == min(window, height)
                assert right - left == min(window, width)
                covered[top:bottom, left:right] = True
            assert covered.all()


@pytest.mark.parametrize(("window", "stride"), [(4, 5), (4, 0), (0, 0), ((4, 4), (4, 5))])
def test_gaps_are_refused(window: Any, stride: Any) -> None:
    with pytest.raises(ConfigError, match="leave gaps"):
        windows((8, 8), window, stride)


@pytest.mark.parametrize("size", [(9, 23), (16, 16), (40, 33)])
def test_constant_logits_come_back(size: tuple[int, int]) -> None:
    constant = torch.tensor([1.5, -2.0, 0.25])

    def predict(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
        assert part.shape[-2] % 8 == part.shape[-1] % 8 == 0
        cells = constant[None, :, None, None].expand(1, -1, part.shape[-2] // 4, 3)
        return cells, (part.shape[-2], part.shape[-1])

    logits = slide(torch.zeros(3, *size), predict, 16, 11, divisor=8).full()
    assert logits.shape == (3, *size)
    assert torch.allclose(logits, constant[:, None, None].expand(logits.shape))


def test_overlaps_are_averaged() -> None:
    number = iter([1.0, 4.0, 10.0])

    def predict(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return torch.full((1, 1, 1, 1), next(number)), (part.shape[-2], part.shape[-1])

    # columns 0..3, 3..6, 4..7
    logits = slide(torch.zeros(3, 2, 8), predict, 4, 3).full()
    assert logits[0, 0].tolist() == [1, 1, 1, 2.5, 7, 7, 7, 10]


@pytest.mark.parametrize("size", [(21, 50), (12, 33)])
@pytest.mark.parametrize("output", [(40, 31), (21, 50)])
def test_windows_of_low_resolution_against_a_computation_by_hand(
    slide_by_hand: Any, size: tuple[int, int], output: tuple[int, int]
) -> None:
    """A map of one cell for 4 x 4 pixels, padded, and the mean resized at the end."""
    image = torch.randn(5, *size, generator=torch.Generator().manual_seed(0))

    def cells(part: Tensor) -> Tensor:
        height, width = part.shape[-2:]
        return F.avg_pool2d(F.pad(part, (0, -width % 4, 0, -height % 4)), 4)

    def predict(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
        return cells(part), (part.shape[-2], part.shape[-1])

    def by_hand(part: Tensor) -> Tensor:
        small = cells(part)
        large = F.interpolate(small, scale_factor=4, mode="bilinear", align_corners=False)
        return large[..., : part.shape[-2], : part.shape[-1]]

    found = slide(image, predict, 16, 9, divisor=4).resized(output).full()
    expected = slide_by_hand(image[None], by_hand, 16, 9)
    expected = F.interpolate(expected, output, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def toy(x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The toy network of the reference vectors: not equivariant to anything."""
    logits = torch.stack([x[:, 0], x[:, 1].flip(-1), x[:, 2].flip(-2), x.mean(dim=1)], dim=1)
    return logits, (x.shape[-2], x.shape[-1])


@pytest.fixture
def golden(golden_dir: Path) -> dict[str, Any]:
    with np.load(golden_dir / "denseclip_slide.npz", allow_pickle=False) as file:
        return {k: file[k] for k in file.files}


def close(found: Tensor, expected: np.ndarray) -> bool:
    tensor = torch.from_numpy(expected)
    return bool((found - tensor).abs().max() <= 1e-5 * tensor.abs().max())


@pytest.mark.golden
def test_reference(golden: dict[str, Any]) -> None:
    cases = json.loads(str(golden["config"]))["cases"]
    assert cases
    for case in cases:
        name = case["name"]
        images = torch.from_numpy(golden[f"{name}/image"])
        assert list(images.shape) == case["size"]
        for row, image in enumerate(images):
            scores = slide(image, toy, tuple(case["crop"]), tuple(case["stride"]))
            assert close(scores.full(), golden[f"{name}/logits"][row])
            resized = scores.resized(tuple(case["ori"]))
            assert close(resized.full(), golden[f"{name}/logits_rescaled"][row])
            assert close(resized.full().softmax(dim=0), golden[f"{name}/prob"][row])
            assert close(resized.best()[1], golden[f"{name}/prob"][row].max(axis=0))
