"""Reading panoptic annotations in COCO's format, with checks that name the faulty record.

Format: https://cocodataset.org/#format-data: a JSON file with the segments of each image, and a PNG
an image whose colours are the segment ids.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from densedet.data.annotation_file import (
    ID_REMEDY,
    category_names,
    is_id,
    read_annotation_file,
    vocabulary_ids,
    whole,
)
from densedet.data.annotation_values import Faults
from densedet.data.registration import is_registered
from densedet.data.segment_map import MAX_ID
from densedet.data.suspicions import warn_of_placeholders
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

ImageFile = Callable[[dict[str, Any]], str]
"""From an entry of the list "images" to its file below the folder of the images."""


def load_panoptic_format(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    panoptic_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    hint: str = "",
    image_file: ImageFile = itemgetter("file_name"),
) -> list[dict[str, Any]]:
    """Read a COCO panoptic file into Detectron2's standard panoptic dicts.

    Categories are matched with the vocabulary by name, exactly. In a vocabulary in the order of the
    category ids, as :meth:`densedet.vocabulary.Vocabulary.from_coco` makes it and the class list
    "coco_panoptic" is, the index of a category is the rank of its id. Nothing is read from the
    images or the PNGs.

    Args:
        json_file: the annotation file.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs.
        vocabulary: gives ``category_id``, the index of the category, things and stuff in one.
        hint: added to the message if the file is missing: where it comes from.
        image_file: where the file of an image is, if not under its "file_name".

    Returns:
        One dict an annotated image, by ascending image id: "file_name", "height", "width",
        "image_id", "pan_seg_file_name" and "segments_info", in file order (each "id",
        "category_id", "isthing" and "iscrowd", and where the file has them "bbox" as x, y, width,
        height, and "area", both in pixels). An area that is no number above 0 counts as missing,
        and the id 1.0 is 1.

    Raises:
        DatasetError: the file is missing, is no JSON or lacks keys; a category is not in the
            vocabulary, or a thing in one and stuff in the other; an annotation belongs to an
            unknown image; ids occur twice; a box is not four finite numbers. The message names the
            file and the first ten faulty records, and says how many there are.
    """
    data = read_annotation_file(json_file, hint)
    return _Reader(Path(json_file), data, vocabulary, image_file).records(image_root, panoptic_root)


class _Reader:
    """The checks on one panoptic file."""

    def __init__(
        self, path: Path, data: Mapping[str, Any], vocabulary: Vocabulary, image_file: ImageFile
    ) -> None:
        self.path, self.image_file = path, image_file
        self.faults = Faults(f"panoptic file {path}")
        self.vocabulary = vocabulary
        self.annotations: list[dict[str, Any]] = data["annotations"]
        self.indices = vocabulary_ids(data, path, vocabulary)
        self._check_categories(data)
        self.without_area = 0
        self.images: dict[int | str, dict[str, Any]] = {}
        for image in data["images"]:
            with self._collected():
                self._add_image(image)
        self.faults.check()

    def error(self, record: str, problem: str) -> DatasetError:
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
        sides = (whole(image["width"]), whole(image["height"]))
        if not all(type(side) is int and side > 0 for side in sides):
            raise self.error(
                f"image {image_id}",
                f"has size {sides!r:.100}; width and height are positive whole numbers",
            )
        if not isinstance(image["file_name"], str):
            raise self.error(f"image {image_id}", "has a 'file_name' that is no text; mend it")
        if image_id in self.images:
            raise self.error(f"image {image_id}", "occurs twice; give each image its own id")
        self.images[image_id] = {**image, "id": image_id, "width": sides[0], "height": sides[1]}

    def records(
        self, image_root: str | os.PathLike[str], panoptic_root: str | os.PathLike[str]
    ) -> list[dict[str, Any]]:
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
        name, image_id = _name(annotation), whole(annotation["image_id"])
        if not is_id(image_id) or image_id not in self.images:
            raise self.error(name, "belongs to an image that is not in 'images'; add it or drop it")
        if not isinstance(annotation["file_name"], str):
            raise self.error(name, "has a 'file_name' that is no text; mend it")
        if not isinstance(annotation["segments_info"], list):
            raise self.error(name, "has 'segments_info' that is no list")
        return self.images[image_id]

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
        number, category = whole(entry["id"]), whole(entry["category_id"])
        record = f"segment {entry['id']!s:.50} in {name}"
        if type(number) is not int or not 1 <= number <= MAX_ID:
            raise self.error(record, "has an id that no segment in a PNG has; mend it")
        index = self.indices.get(category) if is_id(category) else None
        if index is None:
            raise self.error(record, f"has category_id {category!s:.50}, which 'categories' lacks")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise self.error(record, f"has iscrowd={entry['iscrowd']!r:.50}; give 0 or 1")
        area = _area(entry.get("area"))
        self.without_area += area is None
        return {
            "id": number,
            "category_id": index,
            "isthing": self.vocabulary.kinds[index] == "thing",
            **({"bbox": self._box(entry["bbox"], record)} if entry.get("bbox") else {}),
            "iscrowd": int(entry.get("iscrowd", 0)),
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


def register_panoptic_format(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    panoptic_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    hint: str = "",
    image_file: ImageFile = itemgetter("file_name"),
    stuff_under_things: bool = False,
) -> None:
    """Register a COCO panoptic data set; its file is read when the data set is loaded.

    The metadata are those of Detectron2's panoptic sets, with ``vocabulary`` and ``registration``
    (the arguments). Things and stuff share the indices of the vocabulary. Loading the data set adds
    ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``.

    Args:
        name: name in Detectron2's catalogs.
        json_file, image_root, panoptic_root, vocabulary, hint, image_file: see
            :func:`load_panoptic_format`.
        stuff_under_things: whether the area of stuff counts the pixels that things lie over, as in
            ADE20K; kept in the metadata, for :func:`densedet.data.verification.verify`.

    Raises:
        DatasetError: the name is taken by another data set. The same call twice is fine. On
            loading: as :func:`load_panoptic_format`, or the first PNG is missing.
    """
    arguments: dict[str, Any] = {
        "json_file": os.fspath(json_file),
        "image_root": os.fspath(image_root),
        "panoptic_root": os.fspath(panoptic_root),
        "vocabulary": vocabulary,
    }
    if is_registered(name, arguments):
        return

    def load() -> list[dict[str, Any]]:
        data = read_annotation_file(json_file, hint)
        reader = _Reader(Path(json_file), data, vocabulary, image_file)
        for kind in ("thing", "stuff"):
            ids = {i: n for i, n in reader.indices.items() if vocabulary.kinds[n] == kind}
            MetadataCatalog.get(name).set(**{f"{kind}_dataset_id_to_contiguous_id": ids})
        records = reader.records(image_root, panoptic_root)
        warn_of_placeholders(vocabulary.labels, arguments["json_file"])
        if records and not os.path.isfile(records[0]["pan_seg_file_name"]):
            raise DatasetError(
                f"segment map {records[0]['pan_seg_file_name']} of {json_file} does not exist; "
                f"{hint or 'check the folder of the PNGs'}"
            )
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=list(vocabulary.labels),
        stuff_classes=list(vocabulary.labels),
        vocabulary=vocabulary,
        image_root=arguments["image_root"],
        panoptic_root=arguments["panoptic_root"],
        panoptic_json=arguments["json_file"],
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        stuff_under_things=stuff_under_things,
        registration=arguments,
    )
