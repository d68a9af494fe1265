"""Sizes that fit two limits."""

import pytest

from densedet.modeling.resizing import fit_size


@pytest.mark.parametrize(
    ("size", "limits", "factor", "expected"),
    [
        ((100, 150), (2048, 512), 1.0, (512, 768)),  # the short side limits
        ((1000, 100), (2048, 512), 1.0, (2048, 205)),  # the long side does
        ((333, 500), (2048, 640), 0.5, (320, 480)),
        ((30, 42), (51, 100), 0.5, (18, 25)),  # 25.5 pixels are 25
        ((1, 700), (256, 64), 1.0, (1, 256)),  # 0.37 pixels are one
    ],
)
def test_both_limits(
    size: tuple[int, int], limits: tuple[int, int], factor: float, expected: tuple[int, int]
) -> None:
    assert fit_size(*size, *limits, factor) == expected
