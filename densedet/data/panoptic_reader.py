"""The checks on one panoptic file in COCO's format, and the records that are made of it."""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densedet.data.annotation_file import (
    ID_REMEDY,
    ById,
    category_names,
    is_id,
    vocabulary_ids,
    whole,
)
from densedet.data.annotation_values import Faults, read_crowd, whole_number
from densedet.data.segment_map import MAX_ID
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

ImageFile = Callable[[dict[str, Any]], str]
"""From an entry of the list "images" to its file below the folder of the images."""


class PanopticReader:
    """Checks the outline of a panoptic file, and then its annotations.

    Attributes:
        indices: category id of the file -> index in the vocabulary.

    Args:
        path: of the file.
        data: its content.
        vocabulary: see :func:`densedet.data.load_panoptic_format`.
        image_file: likewise.

    Raises:
        DatasetError: a category or an image is wrong.
    """

    def __init__(
        self, path: Path, data: Mapping[str, Any], vocabulary: Vocabulary, image_file: ImageFile
    ) -> None:
        self.path, self.image_file = path, image_file
        self.faults = Faults(f"panoptic file {path}")
        self.vocabulary = vocabulary
        self.annotations: list[dict[str, Any]] = data["annotations"]
        self.indices = ById(vocabulary_ids(data, path, vocabulary))
        self._check_categories(data)
        self.without_area = 0
        self.images = ById()
        for image in data["images"]:
            with self._collected():
                self._add_image(image)
        self.faults.check()

    def error(self, record: str, problem: str) -> DatasetError:
        """What is raised for one record."""
        return DatasetError(f"{self.faults.file}: {record} {problem}")

    @contextmanager
    def _collected(self) -> Iterator[None]:
        """Note what is wrong with a record, so that all faults are said at once."""
        try:
            yield
        except DatasetError as error:
            self.faults.add(str(error).removeprefix(f"{self.faults.file}: "))

    def _check_categories(self, data: Mapping[str, Any]) -> None:
        things = {entry["id"]: entry.get("isthing") for entry in data["categories"]}
        for category_id, name in category_names(data, self.path).items():
            if category_id not in self.indices:
                raise self.error(
                    f"category {name!r}",
                    f"is not in the vocabulary of {len(self.vocabulary)} categories; give the "
                    "vocabulary of this file",
                )
            kind = self.vocabulary.kinds[self.indices[category_id]]
            if things[category_id] != int(kind == "thing"):
                raise self.error(
                    f"category {name!r}",
                    f"has isthing={things[category_id]!r:.50}, but is {kind} in the vocabulary; "
                    "make them agree",
                )

    def _add_image(self, image: dict[str, Any]) -> None:
        keys = {"id", "width", "height", "file_name"}
        if not isinstance(image, dict) or not keys <= image.keys():
            raise self.error(f"image {image!r:.200}", f"needs {', '.join(sorted(keys))}")
        image_id = whole(image["id"])
        if not is_id(image_id, self.images):
            raise self.error(f"image {image!r:.200}", ID_REMEDY)
        sides = (whole_number(image["width"]), whole_number(image["height"]))
        if not all(side is not None and side > 0 for side in sides):
            stated = (image["width"], image["height"])
            raise self.error(
                f"image {image_id}",
                f"has size {stated!r:.100}; width and height are positive whole numbers",
            )
        if not isinstance(image["file_name"], str):
            raise self.error(f"image {image_id}", "has a 'file_name' that is no text; mend it")
        if image_id in self.images:
            raise self.error(f"image {image_id}", "occurs twice; give each image its own id")
        self.images[image_id] = {**image, "id": image_id, "width": sides[0], "height": sides[1]}

    def records(
        self, image_root: str | os.PathLike[str], panoptic_root: str | os.PathLike[str]
    ) -> list[dict[str, Any]]:
        """The records; raises DatasetError for wrong annotations."""
        found: dict[int | str, dict[str, Any]] = {}
        for annotation in self.annotations:
            with self._collected():
                image = self._image(annotation)
                if image["id"] in found:
                    raise self.error(
                        _name(annotation), "occurs twice; give each image one list of segments"
                    )
                found[image["id"]] = {
                    "file_name": os.path.join(os.fspath(image_root), self.image_file(image)),
                    "height": image["height"],
                    "width": image["width"],
                    "image_id": image["id"],
                    "pan_seg_file_name": os.path.join(
                        os.fspath(panoptic_root), annotation["file_name"]
                    ),
                    "segments_info": self._segments(annotation),
                }
        self.faults.check()
        logger.info("%s: %d images, %d of them annotated", self.path, len(self.images), len(found))
        if self.without_area:
            logger.warning(
                "%s: %d segments have no area above 0; their pixels in the PNGs count instead",
                self.path,
                self.without_area,
            )
        return [found[i] for i in sorted(found)]

    def _image(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """The image of an annotation whose outline is right."""
        keys = {"image_id", "file_name", "segments_info"}
        if not isinstance(annotation, dict) or not keys <= annotation.keys():
            raise self.error(f"annotation {annotation!r:.200}", f"needs {', '.join(sorted(keys))}")
        name, image = _name(annotation), _find(self.images, annotation["image_id"])
        if image is None:
            raise self.error(name, "belongs to an image that is not in 'images'; add it or drop it")
        if not isinstance(annotation["file_name"], str):
            raise self.error(name, "has a 'file_name' that is no text; mend it")
        if not isinstance(annotation["segments_info"], list):
            raise self.error(name, "has 'segments_info' that is no list")
        return dict(image)

    def _segments(self, annotation: dict[str, Any]) -> list[dict[str, Any]]:
        segments: dict[int, dict[str, Any]] = {}
        for entry in annotation["segments_info"]:
            with self._collected():
                segment = self._segment(entry, _name(annotation))
                if segment["id"] in segments:
                    raise self.error(
                        f"segment {segment['id']} in {_name(annotation)}",
                        "occurs twice; give each segment its own id",
                    )
                segments[segment["id"]] = segment
        return list(segments.values())

    def _segment(self, entry: dict[str, Any], name: str) -> dict[str, Any]:
        if not isinstance(entry, dict) or not {"id", "category_id"} <= entry.keys():
            raise self.error(f"segment {entry!r:.200} in {name}", "needs category_id, id")
        number = whole_number(entry["id"])
        record = f"segment {entry['id']!s:.50} in {name}"
        if number is None or not 1 <= number <= MAX_ID:
            raise self.error(record, "has an id that no segment in a PNG has; mend it")
        index = _find(self.indices, entry["category_id"])
        if index is None:
            category = f"{entry['category_id']!r:.50}"
            raise self.error(record, f"has category_id {category}, which 'categories' lacks")
        crowd = read_crowd(entry.get("iscrowd"))
        if crowd is None:
            raise self.error(record, f"has iscrowd={entry['iscrowd']!r:.50}; give 0 or 1")
        area = _area(entry.get("area"))
        self.without_area += area is None
        return {
            "id": number,
            "category_id": index,
            "isthing": self.vocabulary.kinds[index] == "thing",
            **({"bbox": self._box(entry["bbox"], record)} if entry.get("bbox") else {}),
            "iscrowd": crowd,
            **({} if area is None else {"area": area}),
        }

    def _box(self, box: Any, record: str) -> list[float]:
        try:
            x, y, width, height = map(float, box if isinstance(box, list) else ())
        except (TypeError, ValueError, OverflowError) as error:
            raise self.error(
                record, f"has box {box!r:.200}; give four numbers x, y, width, height"
            ) from error
        if not all(map(math.isfinite, (x, y, width, height))) or min(width, height) < 0:
            raise self.error(
                record,
                f"has box {box!r:.200}, which is not finite or has a negative side; mend it",
            )
        return [x, y, width, height]


def _name(annotation: Mapping[str, Any]) -> str:
    """What a message calls an annotation."""
    return f"the annotation of image {annotation['image_id']!s:.100}"


def _area(value: Any) -> float | None:
    """A number above 0, also as text; None if it is none."""
    try:
        area = float(value) if type(value) in (int, float, str) else 0.0
    except (ValueError, OverflowError):
        return None
    if not 0 < area < math.inf:
        return None
    return int(area) if area.is_integer() else area


def _find(entries: ById, key: Any) -> Any:
    """What belongs to an id; None if nothing does, or if it cannot be one."""
    try:
        return None if type(key) is bool else entries[key]
    except (KeyError, TypeError):
        return None
