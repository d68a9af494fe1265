"""From the decoded JSON of an instance annotation file to a checked table."""

import gc
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np

from densedet.data import annotation_table as kinds
from densedet.data.annotation_file import (
    ID_REMEDY,
    ById,
    as_id,
    category_names,
    image_file_name,
    is_id,
    read_annotation_file,
)
from densedet.data.annotation_table import AnnotationTable, Ragged, pack_ids
from densedet.data.annotation_values import (
    Faults,
    are_numbers,
    is_packable,
    read_area,
    read_crowd,
    read_mask,
    read_number,
    whole_number,
)
from densedet.data.run_lengths import faults

_STEP = 8192  # annotations at a time
_OTHER_FILES = {
    "segments_info": "; this is a panoptic file: give the file of the instances",
    "caption": "; this is a file of captions: give the file of the instances",
}


def read_table(json_file: str | os.PathLike[str], hint: str = "") -> AnnotationTable:
    """Read and check an instance annotation file in COCO's or LVIS's format.

    Numbers of boxes, polygons and sizes may be text ("12.5"), ids too, and 1.0 is the same id as 1.
    An "area" that is no number from 0 on counts as missing. Polygons of fewer than three points
    are left out where the annotation has others.

    Args:
        json_file: path.
        hint: added to the message if the file is missing: where it comes from.

    Raises:
        DatasetError: the file or some of its records are wrong. The message names the file, and
            the first ten records and their number.
    """
    path = Path(json_file)
    with _without_collection():
        return table_of(read_annotation_file(path, hint), path)


@contextmanager
def _without_collection() -> Iterator[None]:
    """Pause Python's search for circular garbage: decoded JSON has none, and millions of objects.

    It takes half of the time of reading otherwise.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def table_of(data: dict[str, Any], path: Path) -> AnnotationTable:
    """The table of a file that is decoded already; see :func:`read_table`.

    The list "annotations" is emptied meanwhile, so that its memory can be used.
    """
    found = Faults(f"annotation file {path}")
    names = category_names(data, path)
    labels = ById({number: position for position, number in enumerate(names)})
    images = _Images(data["images"], labels, found)
    if data["annotations"] and not data["images"]:
        found.add("its list 'images'", "is empty; give a file with images")
    found.check()
    annotations = _Annotations(images, labels, found)
    entries = data.pop("annotations")
    for start in range(0, len(entries), _STEP):
        annotations.add(entries[start : start + _STEP])
        entries[start : start + _STEP] = [None] * len(entries[start : start + _STEP])
    found.check()
    return AnnotationTable(
        path,
        _categories(data, names),
        (annotations.id_faults.count, annotations.id_faults.shown),
        **images.columns(),
        **annotations.columns(),
    )


def _categories(data: Mapping[str, Any], names: Mapping[Any, str]) -> list[dict[str, Any]]:
    kept = ("frequency", "supercategory", "isthing")
    return [
        {"id": number, "name": name, **{key: entry[key] for key in kept if key in entry}}
        for (number, name), entry in zip(names.items(), data["categories"], strict=True)
    ]


class _Images:
    """The images of a file and their columns."""

    def __init__(self, entries: Sequence[Any], labels: ById, found: Faults) -> None:
        self.labels, self.found = labels, found
        self.positions = ById()
        self.sizes: list[tuple[int, int]] = []
        self.file_names: list[str] = []
        self.lists: list[list[int]] = []
        self.has_lists: list[list[bool]] = []
        for entry in entries:
            problem = self._problem(entry)
            if problem:
                found.add(*problem)

    def _problem(self, entry: Any) -> tuple[str, str] | None:
        """Take an image; or else the record and what is wrong with it."""
        if not isinstance(entry, dict) or not {"id", "width", "height"} <= entry.keys():
            return f"image {entry!r:.200}", "needs 'id', 'width' and 'height'"
        number = as_id(entry["id"])
        if not is_id(number, self.positions) or not is_packable(number):
            return f"image {entry!r:.200}", ID_REMEDY
        name = f"image {number}"
        if number in self.positions:
            return name, "occurs twice; give each image its own id"
        width, height = whole_number(entry["width"]), whole_number(entry["height"])
        if width is None or height is None or min(width, height) < 1:
            sides = (entry["width"], entry["height"])
            return name, f"has size {sides!r:.100}; width and height are positive whole numbers"
        file_name = image_file_name(entry)
        if not file_name or "\0" in file_name:
            return name, "has neither 'file_name' nor a 'coco_url'"
        lists = [self._list(entry, key) if key in entry else [] for key in kinds.LVIS_LISTS]
        for key, row in zip(kinds.LVIS_LISTS, lists, strict=True):
            if row is None:
                shown = f"{entry[key]!r:.100}"
                return name, f"has {key}={shown}; give a list of ids that 'categories' has, or []"
        self.positions[number] = len(self.sizes)
        self.sizes.append((height, width))
        self.file_names.append(file_name)
        self.lists.extend(row or [] for row in lists)
        self.has_lists.append([key in entry for key in kinds.LVIS_LISTS])
        return None

    def _list(self, entry: Mapping[str, Any], key: str) -> list[int] | None:
        """The positions of the categories of one of LVIS's lists; None if they are none."""
        value = entry[key]
        try:
            return [self.labels[number] for number in value] if isinstance(value, list) else None
        except (KeyError, TypeError):
            return None

    def columns(self) -> dict[str, Any]:
        return {
            "image_ids": pack_ids(list(self.positions)),
            "sizes": np.array(self.sizes, dtype=np.int64).reshape(-1, 2),
            "file_names": Ragged.of_text(self.file_names),
            "lists": Ragged.of(self.lists, np.int64),
            "has_lists": np.array(self.has_lists, dtype=np.bool_).reshape(-1, 2),
        }


class _Annotations:
    """The annotations of a file and their columns, a few thousand at a time."""

    def __init__(self, images: _Images, labels: ById, found: Faults) -> None:
        self.images, self.labels, self.found = images.positions, labels, found
        self.sizes = np.array(images.sizes, dtype=np.int64).reshape(-1, 2)
        self.areas_of_images = self.sizes.prod(axis=1)
        self.numbers: list[Any] = []  # the ids so far; None where there is none
        self.taken: set[Any] = set()
        self.id_faults = Faults("")
        self.parts: dict[str, list[Any]] = {
            key: []
            for key in ("images", "labels", "boxes", "areas", "crowds", "kinds")
            + ("polygons", "polygon_counts", "run_lengths")
        }
        self.id_type: type | None = None

    def add(self, entries: Sequence[Any]) -> None:
        """Check some annotations and take those that are right."""
        right, heads = [], []
        for entry in entries:
            head = self._head(entry)
            if isinstance(head, str):
                self.found.add(entry_name(entry), head)
            else:
                right.append(entry)
                heads.append(head)
                self._number(entry)
        if not right:
            return
        images, labels, crowds = (np.array(column) for column in zip(*heads, strict=True))
        boxes = list(map(self._box, right))
        self._extend(
            images=images.astype(np.int64),
            labels=labels.astype(np.int64),
            crowds=crowds.astype(np.bool_),
            boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            areas=np.array([read_area(entry.get("area")) for entry in right], dtype=np.float64),
        )
        self._add_masks(right, images, boxes)

    def _extend(self, **columns: Any) -> None:
        for key, value in columns.items():
            self.parts[key].append(value)

    def _head(self, entry: Any) -> tuple[int, int, int] | str:
        """Position of the image and of the category, 1 for a crowd; or what is wrong with it."""
        if not isinstance(entry, dict):
            return "is not an object"
        try:
            image, label = entry["image_id"], entry["category_id"]
            entry["bbox"]
        except KeyError:
            missing = {"image_id", "category_id", "bbox"} - entry.keys()
            other = next((what for key, what in _OTHER_FILES.items() if key in entry), "")
            return f"lacks {', '.join(sorted(missing))}{other}"
        crowd = read_crowd(entry.get("iscrowd"))
        if crowd is None:
            return f"has iscrowd={entry['iscrowd']!r:.50}; give 0 or 1"
        try:
            position = -1 if type(image) is bool else self.images[image]
        except (KeyError, TypeError):
            position = -1
        if position < 0:
            return "belongs to an image that is not in 'images'; add it or drop this"
        try:
            category = -1 if type(label) is bool else self.labels[label]
        except (KeyError, TypeError):
            category = -1
        if category < 0:
            return f"has category_id {label!r:.50}, which 'categories' lacks"
        return position, category, crowd

    def _number(self, entry: Mapping[str, Any]) -> None:
        """Note the id of an annotation, and what is wrong with it: not all readers need it."""
        number = as_id(entry.get("id"))
        problem = ""
        if number is None:
            problem = "lacks id"
        elif not is_packable(number) or type(number) is not (self.id_type or type(number)):
            problem, number = ID_REMEDY, None
        elif number in self.taken:
            problem = (
                "has an id that occurs twice; COCO's evaluation would count only one of the two: "
                "number the annotations anew"
            )
        else:
            self.id_type = type(number)
            self.taken.add(number)
        self.numbers.append(number)
        if problem:
            self.id_faults.add(entry_name(entry), problem)

    def _box(self, entry: Mapping[str, Any]) -> list[float]:
        """x, y, width, height as numbers."""
        box = entry["bbox"]
        try:
            if not isinstance(box, list) or len(box) != 4:
                raise ValueError
            numbers = box if are_numbers(box) else [read_number(value) for value in box]
            if not all(map(math.isfinite, numbers)):
                self.found.add(
                    entry_name(entry), f"has box {box!r:.200}, which is not finite; mend it"
                )
                return [0.0] * 4
            return numbers
        except (TypeError, ValueError, OverflowError):
            self.found.add(
                entry_name(entry),
                f"has box {box!r:.200}; give four numbers x, y, width, height",
            )
            return [0.0] * 4

    def _add_masks(
        self, entries: Sequence[Mapping[str, Any]], images: Any, boxes: Sequence[list[float]]
    ) -> None:
        """The masks of annotations that are right otherwise."""
        shapes: list[tuple[int, list[list[float]], bytes]] = []
        for entry, image, box in zip(entries, images.tolist(), boxes, strict=True):
            try:
                shapes.append(read_mask(entry.get("segmentation"), self.sizes[image], box))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                self._refuse(entry, str(error) or repr(error))
                shapes.append((kinds.NO_MASK, [], b""))
        kind = np.array([shape[0] for shape in shapes], dtype=np.uint8)
        rows = np.flatnonzero(kind == kinds.RUN_LENGTHS)
        wrong = faults([shapes[row][2] for row in rows], self.areas_of_images[images[rows]])
        for place, problem in sorted(wrong.items()):
            self._refuse(entries[rows[place]], problem)
        polygons = list(chain.from_iterable(shape[1] for shape in shapes))
        self._extend(
            kinds=kind,
            polygons=Ragged.of(polygons, np.float64),
            polygon_counts=np.array([len(shape[1]) for shape in shapes], dtype=np.int64),
            run_lengths=Ragged.of([shape[2] for shape in shapes], np.uint8),
        )

    def _refuse(self, entry: Mapping[str, Any], problem: str) -> None:
        self.found.add(
            entry_name(entry),
            "has a segmentation that is neither polygons nor a run-length mask of its image: "
            f"{problem}",
        )

    def columns(self) -> dict[str, Any]:
        types: dict[str, Any] = {
            "images": np.int64,
            "labels": np.int64,
            "boxes": np.float64,
            "areas": np.float64,
            "crowds": np.bool_,
            "kinds": np.uint8,
        }
        counts = np.concatenate([np.zeros(1, np.int64), *self.parts["polygon_counts"]])
        empty = {"boxes": np.zeros((0, 4))}
        return {
            key: np.concatenate([empty.get(key, np.zeros(0)).astype(kind), *self.parts[key]])
            for key, kind in types.items()
        } | {
            "ids": self._ids(),
            "unnumbered": np.array([number is None for number in self.numbers], dtype=np.bool_),
            "polygons": Ragged.joined(self.parts["polygons"], np.float64),
            "polygon_rows": np.cumsum(counts),
            "run_lengths": Ragged.joined(self.parts["run_lengths"], np.uint8),
        }

    def _ids(self) -> Any:
        """The ids; those of annotations without one are numbers from 1 that no other has."""
        convert = str if self.id_type is str else int
        free = (convert(i) for i in count(1) if convert(i) not in self.taken)
        return pack_ids([next(free) if number is None else number for number in self.numbers])


def entry_name(entry: Any) -> str:
    """What a message calls an annotation."""
    if not isinstance(entry, dict):
        return f"annotation {entry!r:.200}"
    number, image = entry.get("id", "(without id)"), entry.get("image_id", "?")
    return f"annotation {number!s:.50} of image {image!s:.50}"
