"""Checks of run-length masks, many at a time.

pycocotools trusts its run lengths: those that end too early let the evaluation of masks run for
ever, and those that are too long are written past the end of the mask.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

_MAX_GROUPS = 6  # of 5 bits: a run below 2^30 pixels
_FOREIGN = re.compile(rb"[^0-o]")  # 6 bits a character, from "0" on
_GARBAGE = "they are no compressed run lengths"


def encode(counts: Any, height: int, width: int) -> bytes:
    """Compressed run lengths, from either form that COCO's format has.

    Those that are compressed already are taken as they are: see :func:`faults`.

    Raises:
        ValueError: they are neither text nor a list of lengths that fill the mask.
    """
    if isinstance(counts, str):
        return counts.encode("utf-8", "replace")
    if not isinstance(counts, list) or {type(run) for run in counts} - {int, float}:
        raise ValueError("its 'counts' are neither text nor a list of numbers")
    if any(run < 0 or run != int(run) for run in counts if abs(run) < 1 << 62):
        raise ValueError("its run lengths are not whole numbers from 0 on")
    total = sum(counts)
    if total != height * width:
        raise ValueError(_sum_message(total, height * width))
    whole = {"size": [height, width], "counts": [int(run) for run in counts]}
    encoded: bytes = mask_util.frPyObjects(whole, height, width)["counts"]
    return encoded


def faults(counts: Sequence[bytes], areas: NDArray[np.int64]) -> dict[int, str]:
    """What is wrong with compressed run lengths, by their place in the sequence.

    The format is that of pycocotools' ``rleToString``: groups of 5 bits, the lowest first, with a
    bit that says whether another follows; from the third on, a run is the difference to the one
    two before.

    Args:
        counts: N strings.
        areas: ``[N]``: the pixels of each mask.
    """
    found = {i: _GARBAGE for i, text in enumerate(counts) if not text or _FOREIGN.search(text)}
    places = np.array([i for i in range(len(counts)) if i not in found], dtype=np.int64)
    if not len(places):
        return found
    codes = np.frombuffer(b"".join(counts[i] for i in places), dtype=np.uint8).astype(np.int64) - 48
    ends = np.cumsum([len(counts[i]) for i in places])
    is_last = (codes & 0x20) == 0
    incomplete = ~is_last[ends - 1]
    is_last[ends - 1] = True  # so that the others can still be told apart
    first = np.concatenate([[0], np.cumsum(np.add.reduceat(is_last, [0, *ends[:-1]]))[:-1]])
    runs, length = _runs(codes, is_last, first)
    lowest, longest = np.minimum.reduceat(runs, first), np.maximum.reduceat(length, first)
    total = np.add.reduceat(runs, first)
    for row, place in enumerate(places.tolist()):
        if incomplete[row] or longest[row] > _MAX_GROUPS:
            found[place] = _GARBAGE
        elif lowest[row] < 0:
            found[place] = "it has a negative run length"
        elif total[row] != areas[place]:
            found[place] = _sum_message(int(total[row]), int(areas[place]))
    return found


def _sum_message(total: float, area: int) -> str:
    return f"its run lengths add up to {total:,} pixels instead of {area:,}"


def _runs(
    codes: NDArray[np.int64], is_last: NDArray[np.bool_], first: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each run its length in pixels and its number of groups; ``first`` runs begin a mask."""
    stops = np.flatnonzero(is_last) + 1
    starts = np.concatenate([[0], stops[:-1]])
    length = stops - starts
    place = np.minimum(np.arange(len(codes)) - np.repeat(starts, length), _MAX_GROUPS)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), starts)
    negative = (codes[stops - 1] & 0x10) != 0
    values[negative] -= 1 << (5 * np.minimum(length[negative], _MAX_GROUPS + 1))
    position = np.arange(len(values)) - np.repeat(first, np.diff(first, append=len(values)))
    for parity in (1, 0):  # 1, 3, 5, ... and 2, 4, 6, ...: sums of differences
        chosen = np.flatnonzero((position > 0) & (position % 2 == parity))
        sums = np.cumsum(values[chosen])
        begins = np.flatnonzero(position[chosen] <= 2)
        before = np.concatenate([[0], sums])[begins]
        values[chosen] = sums - np.repeat(before, np.diff(begins, append=len(sums)))
    return values, length
