"""Scores of pixels that are made block by block, against the whole [K, H, W] by torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling import pixel_scores
from densedet.modeling.pixel_scores import (
    Interpolated,
    MeanProbabilities,
    PixelScores,
    StoredScores,
    enlarged,
)

# classes, cells, pixels a cell, pixels of the image, pixels of the result
CASES = [
    (1, (3, 4), 16, (41, 60), (41, 60)),
    (2, (1, 1), 8, (5, 8), (31, 7)),
    (7, (6, 5), 4, (23, 17), (64, 90)),
    (150, (9, 13), 16, (130, 201), (57, 33)),
    (1203, (4, 5), 16, (64, 80), (48, 100)),
]


@pytest.fixture(params=[2**18, 1000], ids=["blocks", "small_blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of the usual size, and one so small that every rectangle is cut."""
    monkeypatch.setitem(pixel_scores._BLOCK, "cpu", request.param)


def logits(count: int, cells: tuple[int, int], seed: int = 0) -> Tensor:
    return 3 * torch.randn(count, *cells, generator=torch.Generator().manual_seed(seed))


def whole(small: Tensor, stride: int, image: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """[K, H, W]: enlarged, cut to the image, resized."""
    large = F.interpolate(small[None], scale_factor=stride, mode="bilinear", align_corners=False)
    part = large[..., : image[0], : image[1]]
    return F.interpolate(part, size, mode="bilinear", align_corners=False)[0]


def check(scores: PixelScores, expected: Tensor, probability: Tensor | None = None) -> None:
    """All that can be asked for; classes may differ where two scores differ by rounding alone."""
    chances = expected.softmax(dim=0) if probability is None else probability
    assert scores.shape == expected.shape
    torch.testing.assert_close(scores.full(), expected, rtol=0, atol=2e-5)
    best = expected.amax(dim=0)
    for found in (scores.best()[0], scores.argmax(), scores.top(1)[0][..., 0]):
        assert found.dtype == torch.int64
        assert (best - expected.gather(0, found[None])[0]).abs().max() <= 1e-5
    gap = expected.topk(min(2, len(expected)), dim=0).values
    clear = (gap[0] - gap[-1] > 1e-4) | (len(gap) == 1)
    assert torch.equal(scores.best()[0][clear], expected.argmax(dim=0)[clear])
    torch.testing.assert_close(scores.best()[1], chances.amax(dim=0), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.max()[1], best, rtol=0, atol=2e-5)
    n = min(3, len(expected))
    expected_top = chances.topk(n, dim=0).values.movedim(0, -1)
    torch.testing.assert_close(scores.top(n)[1], expected_top, rtol=0, atol=1e-5)
    highest = chances.flatten(1).amax(dim=1)
    torch.testing.assert_close(scores.highest(), highest, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize(("count", "cells", "stride", "image", "size"), CASES)
def test_interpolated(
    count: int, cells: tuple[int, int], stride: int, image: tuple[int, int], size: tuple[int, int]
) -> None:
    small = logits(count, cells)
    check(enlarged(small, stride, image).resized(size), whole(small, stride, image, size))


def test_resizing_twice_is_not_once() -> None:
    small = logits(3, (4, 4))
    scores = enlarged(small, 4, (16, 16)).resized((7, 9)).resized((30, 20))
    first = whole(small, 4, (16, 16), (7, 9))
    check(scores, F.interpolate(first[None], (30, 20), mode="bilinear", align_corners=False)[0])


@pytest.mark.usefixtures("block")
def test_equal_classes_stay_equal() -> None:
    """The first of the classes with equal scores wins, at every pixel and wherever it stands."""
    for count in (2, 5, 64, 333):
        small = logits(1, (5, 6)).expand(count, -1, -1).clone()
        small[: count // 3] -= 1
        scores = enlarged(small, 16, (75, 90)).resized((61, 122))
        assert (scores.argmax() == count // 3).all()
        assert torch.equal(scores.best()[0], scores.argmax())


def test_removed_classes_are_minus_infinity() -> None:
    small = logits(6, (4, 5))
    kept = torch.tensor([False, True, False, True, True, False])
    scores = enlarged(small, 8, (32, 37)).only(kept).resized((20, 44))
    expected = whole(small, 8, (32, 37), (20, 44)).masked_fill(~kept[:, None, None], -torch.inf)
    assert (scores.full()[~kept] == -torch.inf).all()
    assert torch.equal(scores.argmax(), expected.argmax(dim=0))
    chances = expected.softmax(dim=0)
    torch.testing.assert_close(scores.best()[1], chances.amax(dim=0), rtol=0, atol=1e-5)
    assert torch.equal(scores.select([5, 3]), scores.full()[[5, 3]])
    torch.testing.assert_close(scores.highest(), chances.flatten(1).amax(1), rtol=0, atol=1e-5)
    assert scores.highest()[[0, 2, 5]].tolist() == [0, 0, 0]
    assert scores.top(9)[0].shape == (20, 44, 3), "no more than there are"


def test_scores_of_minus_infinity_and_nan() -> None:
    stored = logits(4, (9, 11))
    stored[2, :5] = -torch.inf
    scores = StoredScores(stored)
    check(scores, stored)
    stored[1, 3, 4] = torch.nan
    assert scores.max()[0][3, 4] == 1 and scores.max()[1][3, 4].isnan()


def test_resized_after_something_that_is_not_linear() -> None:
    stored = logits(5, (33, 21))
    expected = F.interpolate(stored[None], (50, 64), mode="bilinear", align_corners=False)[0]
    check(StoredScores(stored).resized((50, 64)), expected)


def test_mean_of_views() -> None:
    one, other = logits(4, (20, 31)), logits(4, (20, 31), seed=1)
    scores = MeanProbabilities([StoredScores(one), StoredScores(other)], [False, True])
    expected = (one.softmax(dim=0) + other.softmax(dim=0).flip(-1)) / 2
    assert scores.probabilities
    check(scores, expected, expected)


def test_nothing_large_is_made() -> None:
    """No block of 1,203 classes at 12 megapixels is larger than it should be."""
    scores = enlarged(logits(1203, (30, 40)), 16, (480, 640)).resized((3000, 4000))
    shapes: list[torch.Size] = []

    def count(block: Tensor) -> tuple[Tensor]:
        shapes.append(block.shape)
        return (block[..., 0],)

    scores.size, whole_size = (8, 4000), scores.size
    scores.reduce(count)
    assert whole_size == (3000, 4000)
    assert max(shape.numel() for shape in shapes) <= pixel_scores._BLOCK["cpu"]


def test_the_whole_has_a_limit() -> None:
    scores = enlarged(logits(1203, (2, 2)), 16, (32, 32)).resized((3000, 4000))
    with pytest.raises(ConfigError, match=r"1203 classes at 3000x4000 .* take 53.8 GiB.*best\(\)"):
        scores.full()
    small = enlarged(logits(3, (2, 2)), 16, (32, 32))
    with pytest.raises(ConfigError, match="more than the limit of 1e-06"):
        small.full(limit=1e-6)


def test_classes_alone_are_reduced() -> None:
    with pytest.raises(ValueError, match="dim=0"):
        StoredScores(logits(3, (2, 2))).argmax(dim=1)


def test_no_gradient() -> None:
    small = logits(3, (4, 4)).requires_grad_()
    scores = enlarged(small, 4, (16, 16))
    assert isinstance(scores, Interpolated)
    assert not scores.best()[1].requires_grad and not scores.full().requires_grad


@pytest.mark.cuda
def test_cuda() -> None:
    small = logits(150, (9, 13))
    scores = enlarged(small.cuda(), 16, (130, 201)).resized((57, 33))
    torch.testing.assert_close(
        scores.full().cpu(), whole(small, 16, (130, 201), (57, 33)), rtol=0, atol=1e-4
    )
