"""The checks that all readers of instance annotations in COCO's format share."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densedet.data.annotation_file import ID_REMEDY, category_names, image_file_name, is_id
from densedet.errors import DatasetError


class AnnotationReader:
    """The images and categories of one annotation file, and what is said about a faulty record.

    Args:
        path: of the file, for messages.
        data: its content, as :func:`densedet.data.annotation_file.read_annotation_file` gives it.

    Attributes:
        names: category id -> name, in file order.
        images: image id -> entry, in file order.

    Raises:
        DatasetError: an image or a category is wrong. The message names the file and the record.
    """

    def __init__(self, path: Path, data: Mapping[str, Any]) -> None:
        self.path = path
        self.names = category_names(data, path)
        self.images: dict[int | str, dict[str, Any]] = {}
        for image in data["images"]:
            self._add_image(image)

    def error(self, record: str, problem: str) -> DatasetError:
        """What is raised for a record."""
        return DatasetError(f"annotation file {self.path}: {record} {problem}")

    def _add_image(self, image: Any) -> None:
        if not isinstance(image, dict) or not {"id", "width", "height"} <= image.keys():
            raise self.error(f"image {image!r:.200}", "needs 'id', 'width' and 'height'")
        if not is_id(image["id"], self.images):
            raise self.error(f"image {image!r:.200}", ID_REMEDY)
        name = f"image {image['id']}"
        if image["id"] in self.images:
            raise self.error(name, "occurs twice; give each image its own id")
        sides = (image["width"], image["height"])
        if not all(isinstance(side, int) and side > 0 for side in sides):
            raise self.error(name, f"has size {sides}; width and height are positive whole numbers")
        if not image_file_name(image):
            raise self.error(name, "has neither 'file_name' nor a 'coco_url'")
        self.images[image["id"]] = image

    def record(self, image: dict[str, Any], root: str | os.PathLike[str]) -> dict[str, Any]:
        """The dataset dict of an image, without its annotations."""
        return {
            "file_name": os.path.join(os.fspath(root), image_file_name(image)),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [],
        }

    def check_annotation(self, entry: Any, *keys: str) -> None:
        """Check that an annotation has a box, a known image, a category and these keys.

        Raises:
            DatasetError: it has not; its "iscrowd" is neither 0 nor 1.
        """
        if not isinstance(entry, dict):
            raise self.error(f"annotation {entry!r:.200}", "is not an object")
        missing = {"image_id", "category_id", "bbox", *keys} - entry.keys()
        if missing:
            raise self.error(entry_name(entry), f"lacks {', '.join(sorted(missing))}")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise self.error(entry_name(entry), f"has iscrowd={entry['iscrowd']!r}; give 0 or 1")
        if not is_id(entry["image_id"]) or entry["image_id"] not in self.images:
            raise self.error(
                entry_name(entry),
                "belongs to an image that is not in 'images'; add it or drop this",
            )

    def category(self, entry: dict[str, Any]) -> str:
        """The name of the category of an annotation.

        Raises:
            DatasetError: the file has no such category.
        """
        name = self.names.get(entry["category_id"]) if is_id(entry["category_id"]) else None
        if name is None:
            raise self.error(
                entry_name(entry),
                f"has category_id {entry['category_id']}, which 'categories' lacks",
            )
        return name


def entry_name(entry: Mapping[str, Any]) -> str:
    """What a message calls an annotation."""
    return f"annotation {entry.get('id', '(without id)')} of image {entry.get('image_id', '?')}"
