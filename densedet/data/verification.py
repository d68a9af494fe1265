"""Reading all annotations of a registered data set once: what they hold, and whether they fit."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from densedet.data.images import image_size
from densedet.data.segment_map import read_segment_map
from densedet.data.semantic_mapper import LabelReader
from densedet.errors import DatasetError

Record = dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """What the annotations of a data set hold.

    Attributes:
        images: their number.
        unit: what is counted: "pixels", "segments" or "boxes".
        counts: label of a class -> number, in the order of the vocabulary.
        ignored: pixels that count nowhere, segments and boxes of crowds.
    """

    images: int
    unit: str
    counts: Mapping[str, int]
    ignored: int

    def summary(self) -> str:
        """One line."""
        absent = [label for label, count in self.counts.items() if not count]
        text = (
            f"{self.images:,} images, {sum(self.counts.values()):,} {self.unit} of "
            f"{len(self.counts) - len(absent)} classes, {self.ignored:,} ignored"
        )
        return f"{text}; none of {_some(absent)}" if absent else text


def verify(name: str, expected: int | None = None, every_class: bool = False) -> Contents:
    """Load a registered data set and read every annotation of it.

    Args:
        name: in Detectron2's catalogs.
        expected: the number of images that there must be; None accepts any.
        every_class: whether each seen class of the vocabulary must occur.

    Raises:
        DatasetError: the data set cannot be loaded, has another number of images, lacks a class, or
            an annotation does not fit its image, its file or the classes.
        ImageError: an image or a map is missing, or a map is truncated or corrupt.
    """
    metadata = MetadataCatalog.get(name)
    records = DatasetCatalog.get(name)
    check_count(name, len(records), expected)
    unit, count = _COUNTERS[metadata.evaluator_type]
    counter = count(metadata)
    counts: Counter[int] = Counter()
    for record in tqdm(records, desc=f"{name}: verified", unit="image"):
        counts.update(counter(record))
    vocabulary = metadata.vocabulary
    absent = [c.label for i, c in enumerate(vocabulary) if c.seen and not counts[i]]
    if every_class and absent:
        raise DatasetError(
            f"{name} has no annotation of {_some(absent)}, which the official data set has: unpack "
            "the archives again, or accept a part of the data set with --any-count"
        )
    found = {label: counts[i] for i, label in enumerate(vocabulary.labels)}
    return Contents(len(records), unit, found, counts[_IGNORED])


def check_count(name: str, found: int, expected: int | None) -> None:
    """Compare the number of images of a split with the official one, where one is given.

    Raises:
        DatasetError: they differ.
    """
    if expected is not None and found != expected:
        raise DatasetError(
            f"{name} has {found:,} images, but the official data set has {expected:,}: unpack the "
            "archives again, or accept a part of the data set with --any-count"
        )


def _some(labels: list[str]) -> str:
    more = f" and {len(labels) - 5} more" if len(labels) > 5 else ""
    return f"{', '.join(labels[:5])}{more}"


_IGNORED = -1  # among the indices of classes
_Counter = Callable[[Record], dict[int, int]]


def _semantic(metadata: Any) -> _Counter:
    ignored = metadata.ignore_label
    read = LabelReader(len(metadata.vocabulary), ignored)

    def count(record: Record) -> dict[int, int]:
        path = record["sem_seg_file_name"]
        labels = read(path)
        if labels.shape != image_size(record["file_name"]):
            raise DatasetError(
                f"label map {path} has another size than its image {record['file_name']}; one of "
                "the two belongs to another version of the data set"
            )
        found = zip(*np.unique(labels, return_counts=True), strict=True)
        return {_IGNORED if i == ignored else int(i): int(n) for i, n in found}

    return count


def _panoptic(metadata: Any) -> _Counter:
    def count(record: Record) -> dict[int, int]:
        path = record["pan_seg_file_name"]
        ids = read_segment_map(path)
        _check_size(path, ids.shape, record)
        _check_size(record["file_name"], image_size(record["file_name"]), record)
        found = zip(*np.unique(ids, return_counts=True), strict=True)
        _check_segments(record, {int(i): int(n) for i, n in found}, metadata.stuff_under_things)
        return _by_class(record["segments_info"])

    return count


def _check_segments(record: Record, pixels: dict[int, int], stuff_under_things: bool) -> None:
    """Compare the segments of an annotation with the number of pixels that each id has."""
    path, annotation = record["pan_seg_file_name"], f"the annotation of image {record['image_id']}"
    segments = {segment["id"]: segment for segment in record["segments_info"]}
    unknown = pixels.keys() - segments.keys() - {0}
    if unknown:
        raise DatasetError(
            f"segment map {path} has the segment id {min(unknown)}, which {annotation} lacks; "
            "unpack or prepare both again"
        )
    for number, segment in segments.items():
        visible = pixels.get(number, 0)
        area = segment.get("area", visible)
        may_be_covered = stuff_under_things and not segment["isthing"]
        covered = may_be_covered and isinstance(area, int | float) and area >= max(visible, 1)
        if not covered and (not visible or area != visible):
            raise DatasetError(
                f"segment map {path} has {visible:,} pixels of segment {number}, but {annotation} "
                f"says {area!r}; unpack or prepare both again"
            )


def _boxes(metadata: Any) -> _Counter:
    listed = set(metadata.thing_dataset_id_to_contiguous_id.values())
    absent = [label for i, label in enumerate(metadata.vocabulary.labels) if i not in listed]
    if absent:
        raise DatasetError(
            f"annotation file {metadata.json_file} has no category {_some(absent)}; it belongs to "
            "another data set or version: unpack the official one again"
        )

    def count(record: Record) -> dict[int, int]:
        _check_size(record["file_name"], image_size(record["file_name"]), record)
        return _by_class(record["annotations"])

    return count


def _check_size(file: str, found: tuple[int, ...], record: Record) -> None:
    size = (record["height"], record["width"])
    if found != size:
        raise DatasetError(
            f"{file} has another size than the annotation says, {size[1]}x{size[0]} (width x "
            "height); it belongs to another version of the data set"
        )


def _by_class(entries: list[Record]) -> dict[int, int]:
    return Counter(_IGNORED if entry["iscrowd"] else entry["category_id"] for entry in entries)


_COUNTERS: Mapping[str, tuple[str, Callable[[Any], _Counter]]] = MappingProxyType(
    {
        "sem_seg": ("pixels", _semantic),
        "coco_panoptic_seg": ("segments", _panoptic),
        "coco": ("boxes", _boxes),
        "lvis": ("boxes", _boxes),
    }
)
