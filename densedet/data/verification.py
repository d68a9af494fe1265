"""Reading all annotations of a registered data set once: what they hold, and whether they fit."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from tqdm import tqdm

from densedet.data.images import label_map_size
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
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        return f"{text}; none of {', '.join(absent[:5])}{more}" if absent else text


def verify(name: str, expected: int | None = None) -> Contents:
    """Load a registered data set and read every annotation of it.

    Args:
        name: in Detectron2's catalogs.
        expected: the number of images that there must be; None accepts any.

    Raises:
        DatasetError: the data set cannot be loaded, has another number of images, or an annotation
            does not fit its image, its file or the classes.
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
    labels = metadata.vocabulary.labels
    return Contents(
        len(records), unit, {label: counts[i] for i, label in enumerate(labels)}, counts[_IGNORED]
    )


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


_IGNORED = -1  # among the indices of classes
_Counter = Callable[[Record], dict[int, int]]


def _semantic(metadata: Any) -> _Counter:
    ignored = metadata.ignore_label
    read = LabelReader(len(metadata.vocabulary), ignored)

    def count(record: Record) -> dict[int, int]:
        path = record["sem_seg_file_name"]
        labels = read(path)
        # sorted: the pixels of an image may be turned by its EXIF orientation
        if sorted(labels.shape) != sorted(label_map_size(record["file_name"])):
            raise DatasetError(
                f"label map {path} has another size than its image {record['file_name']}; one of "
                "the two belongs to another version of the data set"
            )
        found = zip(*np.unique(labels, return_counts=True), strict=True)
        return {_IGNORED if i == ignored else int(i): int(n) for i, n in found}

    return count


def _panoptic(_metadata: Any) -> _Counter:
    def count(record: Record) -> dict[int, int]:
        path = record["pan_seg_file_name"]
        ids = read_segment_map(path)
        size = (record["height"], record["width"])
        for file, found in ((path, ids.shape), (record["file_name"], None)):
            if (found or label_map_size(file)) != size:
                raise DatasetError(
                    f"{file} has another size than the annotation says, {size[1]}x{size[0]} "
                    "(width x height); it belongs to another version of the data set"
                )
        unknown = set(np.unique(ids).tolist()) - {0} - {s["id"] for s in record["segments_info"]}
        if unknown:
            raise DatasetError(
                f"segment map {path} has the segment id {min(unknown)}, which the annotation of "
                f"image {record['image_id']} lacks; unpack or prepare both again"
            )
        return _by_class(record["segments_info"])

    return count


def _boxes(_metadata: Any) -> _Counter:
    def count(record: Record) -> dict[int, int]:
        if not os.path.isfile(record["file_name"]):
            raise DatasetError(
                f"image {record['file_name']} does not exist; unpack the images again"
            )
        return _by_class(record["annotations"])

    return count


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
