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

    def predict(part: Tensor) -> Tensor:
        return constant[None, :, None, None].expand(len(part), -1, *part.shape[-2:])

    logits = slide(torch.zeros(2, 3, *size), predict, 16, 11)
    assert logits.shape == (2, 3, *size)
    assert torch.allclose(logits, constant[None, :, None, None].expand(logits.shape))


def test_overlaps_are_averaged() -> None:
    number = iter([1.0, 4.0, 10.0])

    def predict(part: Tensor) -> Tensor:
        return torch.full((1, 1, *part.shape[-2:]), next(number))

    # columns 0..3, 3..6, 4..7
    logits = slide(torch.zeros(1, 3, 2, 8), predict, 4, 3)
    assert logits[0, 0, 0].tolist() == [1, 1, 1, 2.5, 7, 7, 7, 10]


def toy(x: Tensor) -> Tensor:
    """The toy network of the reference vectors: not equivariant to anything."""
    return torch.stack([x[:, 0], x[:, 1].flip(-1), x[:, 2].flip(-2), x.mean(dim=1)], dim=1)


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
        image = torch.from_numpy(golden[f"{name}/image"])
        assert list(image.shape) == case["size"]
        logits = slide(image, toy, tuple(case["crop"]), tuple(case["stride"]))
        assert close(logits, golden[f"{name}/logits"])
        resized = F.interpolate(logits, case["ori"], mode="bilinear", align_corners=False)
        assert close(resized, golden[f"{name}/logits_rescaled"])
        assert close(resized.softmax(dim=1), golden[f"{name}/prob"])


def test_windows_of_a_batch_see_their_own_images() -> None:
    seen: list[tuple[int, ...]] = []
    images = torch.arange(2 * 3 * 5 * 6.0).reshape(2, 3, 5, 6)

    def predict(part: Tensor) -> Tensor:
        seen.append(tuple(part.shape))
        return part

    assert torch.equal(slide(images, predict, 4, 2), images)
    assert seen == [(2, 3, 4, 4)] * 4
