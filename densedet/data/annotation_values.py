"""Values of annotation files as people have them, and the collection of what is wrong with them."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

from densedet.data import annotation_table as kinds
from densedet.data.run_lengths import encode
from densedet.errors import DatasetError

SHOWN = 10
_LARGEST = 1 << 62
_FAR = 10  # images


class Faults:
    """Collects what is wrong with the records of a file, so that all of it is said at once.

    Args:
        file: what the message calls the file.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0
        self.shown: list[str] = []

    def add(self, record: str, problem: str = "") -> None:
        """Note a faulty record."""
        self.count += 1
        if len(self.shown) < SHOWN:
            self.shown.append(f"{record} {problem}".rstrip())

    def extend(self, count: int, shown: Sequence[str]) -> None:
        """Note what other :class:`Faults` had collected."""
        self.count += count
        self.shown = [*self.shown, *shown][:SHOWN]

    def check(self) -> None:
        """Raise DatasetError if there are any: it has the first ten, and the count."""
        if self.count == 1:
            raise DatasetError(f"{self.file}: {self.shown[0]}")
        if self.count:
            first = f", the first {SHOWN} are" if self.count > SHOWN else ""
            lines = "".join(f" ({i}) {line}" for i, line in enumerate(self.shown, 1))
            raise DatasetError(f"{self.file}: {self.count:,} records are faulty{first}:{lines}")


def read_mask(mask: Any, size: Any, box: list[float]) -> tuple[int, list[list[float]], bytes]:
    """Kind, polygons and run lengths of a segmentation.

    The box itself, x, y, width and height, in place of a polygon means its rectangle.

    Raises:
        ValueError, KeyError, TypeError, OverflowError: it is none.
    """
    if not mask and not isinstance(mask, int | float):  # null, [], "" or {}
        return kinds.NO_MASK, [], b""
    if isinstance(mask, dict):
        height, width = size.tolist()
        if not isinstance(mask.get("size"), list) or "counts" not in mask:
            raise ValueError("run lengths need a list 'size' and 'counts'")
        if [whole_number(side) for side in mask["size"]] != [height, width]:
            raise ValueError(f"its size {mask['size']} is not the image's {[height, width]}")
        return kinds.RUN_LENGTHS, [], encode(mask["counts"], height, width)
    if not isinstance(mask, list):
        raise ValueError(f"{mask!r:.100}")
    polygons = mask if isinstance(mask[0], list) else [mask]
    if not all(isinstance(polygon, list) for polygon in polygons):
        raise ValueError(f"{mask!r:.100} has an entry that is no list of coordinates")
    polygons = [list(map(read_coordinate, p)) if not are_numbers(p) else p for p in polygons]
    _check_coordinates(polygons, max(size))
    valid = [p for p in polygons if len(p) % 2 == 0 and len(p) >= 6]
    if valid:
        return kinds.POLYGONS, valid, b""
    if not any(polygons):
        return kinds.NO_MASK, [], b""
    if polygons == [box]:
        x, y, width, height = box
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        return kinds.POLYGONS, [corners], b""
    return kinds.DEGENERATE, [], b""


def _check_coordinates(polygons: Sequence[Sequence[float]], side: int) -> None:
    """Refuse coordinates that pycocotools, which draws all of a line, takes minutes or dies of."""
    largest = _FAR * side + _FAR
    for coordinate in chain.from_iterable(polygons):
        if not -largest <= coordinate <= largest:  # NaN is not either
            far = f"lies far outside its image, whose longer side has {side} px"
            finite = math.isfinite(coordinate)
            raise ValueError(f"the coordinate {coordinate:g} {far if finite else 'is not finite'}")


def is_packable(number: Any) -> bool:
    """Whether it is text, or a whole number that an array can hold."""
    return type(number) is str or (type(number) is int and abs(number) < _LARGEST)


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are numbers, and none a truth value."""
    return {*map(type, values)} <= {int, float}


def read_number(value: Any) -> float:
    """A number, or the number that a text says.

    Raises:
        ValueError, TypeError, OverflowError: it is none.
    """
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        raise ValueError(f"{value!r} is no number")
    return float(value)


def read_coordinate(value: Any) -> float:
    try:
        return read_number(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{value!r:.100} is no coordinate; give x, y, x, y, ...") from error


def whole_number(value: Any) -> int | None:
    """A whole number, also as text or with a point; None if it is none."""
    if type(value) is int:
        return value if abs(value) < _LARGEST else None
    try:
        number = read_number(value)
        return int(number) if number.is_integer() and abs(number) < _LARGEST else None
    except (TypeError, ValueError, OverflowError):
        return None


def read_crowd(value: Any) -> int | None:
    """0 or 1, also as text or a truth value; a missing one is 0. None if it is neither."""
    number = 0 if value is None else whole_number(int(value) if type(value) is bool else value)
    return number if number in (0, 1) else None


def read_area(value: Any) -> float:
    """An area of the file in pixels; NaN if it cannot be one."""
    valid = type(value) in (int, float) and 0 <= value < math.inf
    return float(value) if valid else math.nan
