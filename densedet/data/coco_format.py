"""Reading annotation files in COCO's format, with checks that name the faulty record.

Format: https://cocodataset.org/#format-data; LVIS (arXiv 1908.03195) adds ``coco_url`` and the
lists of negative and not exhaustively annotated categories.
"""

import difflib
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from densedet.data.annotation_file import ID_REMEDY, is_id, read_annotation_file, vocabulary_ids
from densedet.data.annotation_reader import AnnotationReader, entry_name
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_LVIS_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


def load_coco_format(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    seen_only: bool = False,
    drop_unlisted: bool = False,
    annotated_only: bool = False,
    box_tolerance: float = 1.0,
    expected_annotated: int | None = None,
    hint: str = "",
) -> list[dict[str, Any]]:
    """Read a COCO- or LVIS-format instance file into Detectron2's standard dataset dicts.

    Categories are matched with the vocabulary by name, exactly; their ids and order do not matter.
    Boxes that reach over the border by at most ``box_tolerance`` pixels (COCO's own do, by
    rounding) are clipped; boxes without area (COCO has a few) and instances whose polygons all have
    fewer than three points are skipped, and their number is logged. Nothing is read from the
    images.

    Args:
        json_file: the annotation file.
        image_root: folder that the file names are relative to. An image without ``file_name``
            (LVIS) is found by the last two components of its ``coco_url``.
        vocabulary: gives ``category_id``, the index of the category.
        seen_only: drop the annotations of categories that are not ``seen``; the images stay.
        drop_unlisted: drop the annotations of categories that are not in the vocabulary, instead of
            raising.
        annotated_only: drop the images that have no annotation (crowds count) after that.
        box_tolerance: pixels by which a box may reach over the border.
        expected_annotated: known number of images with annotations; another number is logged as a
            warning.
        hint: added to the message if the file is missing: where it comes from.

    Returns:
        One dict an image, by ascending image id: "file_name", "height", "width", "image_id",
        "annotations" (each "bbox" in XYWH_ABS pixels, "bbox_mode", "category_id", "iscrowd" and, if
        there is one, "segmentation": polygons or compressed RLE), and LVIS's two lists.

    Raises:
        DatasetError: the file is missing, is no JSON or lacks keys; an annotation belongs to an
            unknown image or category, or its box is not finite or lies outside the image; ids occur
            twice. The message names the file and the record.
    """
    return coco_records(
        read_annotation_file(json_file, hint),
        json_file,
        image_root,
        vocabulary,
        seen_only=seen_only,
        drop_unlisted=drop_unlisted,
        annotated_only=annotated_only,
        box_tolerance=box_tolerance,
        expected_annotated=expected_annotated,
    )


def coco_records(
    data: Mapping[str, Any],
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    seen_only: bool = False,
    drop_unlisted: bool = False,
    annotated_only: bool = False,
    box_tolerance: float = 1.0,
    expected_annotated: int | None = None,
) -> list[dict[str, Any]]:
    """What :func:`load_coco_format` makes of a file that was read already.

    The path is for messages. See there for the arguments, the result and the errors.
    """
    reader = _Reader(Path(json_file), data, vocabulary, box_tolerance)
    records = {i: reader.record(image, image_root) for i, image in reader.images.items()}
    annotated = set()
    for annotation in reader.annotations(data["annotations"]):
        index = reader.category_index(annotation, drop_unlisted)
        if index is None or (seen_only and not vocabulary.categories[index].seen):
            continue
        annotated.add(annotation["image_id"])
        instance = reader.instance(annotation, index)
        if instance is not None:
            records[annotation["image_id"]]["annotations"].append(instance)
    reader.report(len(annotated), expected_annotated)
    return [records[i] for i in sorted(records) if not annotated_only or i in annotated]


class _Reader(AnnotationReader):
    """The checks on one annotation file against a vocabulary, and what they say about it."""

    def __init__(
        self, path: Path, data: Mapping[str, Any], vocabulary: Vocabulary, tolerance: float
    ) -> None:
        super().__init__(path, data)
        self.indices = vocabulary_ids(data, path, vocabulary)
        self.labels = vocabulary.labels
        self.tolerance = tolerance
        self.skipped: Counter[str] = Counter()

    def record(self, image: dict[str, Any], root: str | os.PathLike[str]) -> dict[str, Any]:
        """The dataset dict of an image, without its annotations."""
        lists = {key: image[key] for key in _LVIS_KEYS if key in image}
        return super().record(image, root) | lists

    def annotations(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The annotations, each with the keys that follow, a known image and an id of its own."""
        seen_ids: set[int | str] = set()
        for entry in entries:
            self.check_annotation(entry, "id")
            if not is_id(entry["id"], seen_ids):
                raise self.error(entry_name(entry), ID_REMEDY)
            if entry["id"] in seen_ids:
                raise self.error(
                    entry_name(entry),
                    "has an id that occurs twice; COCO's evaluation would count only one of the "
                    "two: number the annotations anew",
                )
            seen_ids.add(entry["id"])
        return entries

    def category_index(self, entry: dict[str, Any], drop_unlisted: bool) -> int | None:
        """The index in the vocabulary; None for a category to be dropped."""
        name = self.category(entry)
        index = self.indices.get(entry["category_id"])
        if index is None and not drop_unlisted:
            close = difflib.get_close_matches(name, self.labels, n=3)
            raise self.error(
                entry_name(entry),
                f"has category {name!r}, which is not in the vocabulary of {len(self.labels)} "
                f"categories{f' (close: {close})' if close else ''}; add it to the vocabulary, or "
                "load with drop_unlisted=True",
            )
        return index

    def instance(self, entry: dict[str, Any], index: int) -> dict[str, Any] | None:
        """The annotation in Detectron2's format; None if there is nothing to learn from it."""
        box = self._box(entry)
        if box is None:
            self.skipped["boxes without area"] += 1
            return None
        instance = {
            "bbox": box,
            "bbox_mode": BoxMode.XYWH_ABS,
            "category_id": index,
            "iscrowd": int(entry.get("iscrowd", 0)),
        }
        if entry.get("segmentation"):
            instance["segmentation"] = self._segmentation(entry)
            if not instance["segmentation"]:
                self.skipped["instances without a valid polygon"] += 1
                return None
        return instance

    def _box(self, entry: dict[str, Any]) -> list[float] | None:
        """The box clipped to the image, XYWH in pixels; None without area."""
        try:
            x, y, width, height = (float(value) for value in entry["bbox"])
        except (TypeError, ValueError, OverflowError) as error:
            raise self.error(
                entry_name(entry),
                f"has box {entry['bbox']!r}; give four numbers x, y, width, height",
            ) from error
        if not all(map(math.isfinite, (x, y, width, height))):
            raise self.error(
                entry_name(entry), f"has box {entry['bbox']}, which is not finite; mend it"
            )
        image = self.images[entry["image_id"]]
        over = max(-x, -y, x + width - image["width"], y + height - image["height"])
        if over > self.tolerance:
            raise self.error(
                entry_name(entry),
                f"has box {entry['bbox']} (x, y, width, height), which reaches {over:g} px outside "
                f"its image of {image['width']}x{image['height']} px; mend the box or the image's "
                "size",
            )
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, image["width"]), min(y + height, image["height"])
        if width <= 0 or height <= 0 or right <= left or bottom <= top:
            return None
        return [x, y, width, height] if over <= 0 else [left, top, right - left, bottom - top]

    def _segmentation(self, entry: dict[str, Any]) -> list[list[float]] | dict[str, Any]:
        """Polygons of three points and more, or compressed RLE of the image's size."""
        mask = entry["segmentation"]
        image = self.images[entry["image_id"]]
        size = [image["height"], image["width"]]
        try:
            if isinstance(mask, dict):
                if list(mask["size"]) != size:
                    raise ValueError(f"its size {mask['size']} is not the image's {size}")
                return (
                    mask_util.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask
                )
            if not all(math.isfinite(sum(polygon)) for polygon in mask):
                raise ValueError("a coordinate is not finite")
            return [polygon for polygon in mask if len(polygon) % 2 == 0 and len(polygon) >= 6]
        except (KeyError, TypeError, ValueError) as error:
            raise self.error(
                entry_name(entry),
                f"has a segmentation that is neither polygons nor a run-length mask of its image: "
                f"{error!r}",
            ) from error

    def report(self, annotated: int, expected: int | None) -> None:
        """Log what was skipped, and how many images have annotations."""
        for what, count in sorted(self.skipped.items()):
            logger.warning("%s: skipped %d %s", self.path, count, what)
        logger.info(
            "%s: %d images, %d of them with annotations", self.path, len(self.images), annotated
        )
        if expected is not None and annotated != expected:
            logger.warning(
                "%s: %d images have annotations, but the published data set has %d; results are "
                "not comparable with published ones unless that is intended",
                self.path,
                annotated,
                expected,
            )
