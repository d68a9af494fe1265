"""Run lengths: every good mask is accepted, each way of being wrong is named."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from densedet.data.run_lengths import encode, faults


def _masks(count: int, largest: int = 100) -> tuple[list[bytes], np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    counts, areas, masks = [], [], []
    for number in range(count):
        height, width = rng.integers(1, largest, 2)
        mask = np.asfortranarray(rng.random((height, width)) < rng.random(), dtype=np.uint8)
        if number % 4 == 0:
            mask[:] = number % 8 // 4  # one long run
        counts.append(mask_util.encode(mask)["counts"])
        areas.append(height * width)
        masks.append(mask)
    return counts, np.array(areas), masks


def test_what_pycocotools_writes_is_right() -> None:
    counts, areas, _ = _masks(300)
    assert faults(counts, areas) == {}
    assert faults([], np.zeros(0, np.int64)) == {}


def test_another_area_is_seen_in_every_mask() -> None:
    counts, areas, _ = _masks(100)
    found = faults(counts, areas + 1)
    assert sorted(found) == list(range(100))
    assert f"add up to {areas[7]:,} pixels instead of {areas[7] + 1:,}" in found[7]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "no compressed run lengths"),
        (b"\xff\xff", "no compressed run lengths"),
        (b"hello~", "no compressed run lengths"),
        (b"P", "no compressed run lengths"),  # says that more follows
        (b"oooooooooooooooo1", "no compressed run lengths"),  # a run of 80 bits
        (b"5O6", "negative"),
        (b"5", "add up to 5 pixels instead of 12"),
        (b"5555", "instead of 12"),
    ],
)
def test_wrong_ones_are_named_among_right_ones(text: bytes, problem: str) -> None:
    good = mask_util.encode(np.asfortranarray([[0, 1, 1, 0]] * 3, dtype=np.uint8))["counts"]
    found = faults([good, text, good], np.array([12, 12, 12]))
    assert list(found) == [1] and problem in found[1]


def test_every_cut_and_every_changed_character_of_a_mask_is_seen_or_another_mask() -> None:
    """What passes can be decoded: it fills the mask exactly."""
    counts, areas, masks = _masks(8, largest=12)
    tried = passed = 0
    for text, area, mask in zip(counts, areas, masks, strict=True):
        changed = [text[:end] for end in range(len(text))]
        for place in range(0, len(text), 7):
            changed += [text[:place] + bytes([c]) + text[place + 1 :] for c in range(45, 115, 3)]
        found = faults(changed, np.full(len(changed), area))
        tried += len(changed)
        for i, other in enumerate(changed):
            if i not in found:
                passed += 1
                decoded = mask_util.decode({"size": list(mask.shape), "counts": other})
                assert decoded.shape == mask.shape
    assert 0 < passed < tried / 2


@pytest.mark.parametrize(
    ("counts", "problem"),
    [
        ([5, 6], "add up to 11 pixels instead of 12"),
        ([5, 8], "add up to 13"),
        ([13, -1], "not whole numbers from 0 on"),
        ([5.5, 6.5], "not whole numbers"),
        ([float("nan"), 12], "run lengths"),
        ([float("inf"), 12], "add up to inf"),
        ([10**400], "add up to"),
        (["5", "7"], "neither text nor a list of numbers"),
        ([True, 11], "neither text nor a list of numbers"),
        (None, "neither text nor a list of numbers"),
        (12, "neither text nor a list of numbers"),
    ],
)
def test_uncompressed_ones(counts: object, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        encode(counts, 3, 4)


def test_both_forms_give_the_same() -> None:
    mask = np.asfortranarray([[0, 1, 1, 0]] * 3, dtype=np.uint8)
    compressed = mask_util.encode(mask)["counts"]
    assert encode([3, 6, 3], 3, 4) == encode([3.0, 6, 3], 3, 4) == compressed
    assert encode(compressed.decode(), 3, 4) == compressed
