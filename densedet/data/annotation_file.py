"""The outline of a COCO-format annotation file: its lists and its categories."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

ID_REMEDY = "has an 'id' that cannot be one; give whole numbers, or text to all of them"


def is_id(value: Any, others: Iterable[Any] = ()) -> bool:
    """Whether a value from JSON can be an id: a whole number or text, as the ``others`` are."""
    return type(value) in (int, str) and type(value) is type(next(iter(others), value))


def read_annotation_file(json_file: str | os.PathLike[str], hint: str = "") -> dict[str, Any]:
    """Read a COCO-format file and check its outline.

    Args:
        json_file: path.
        hint: added to the message if the file is missing.

    Raises:
        DatasetError: missing, not JSON, or without the lists "images", "annotations", "categories".
    """
    path = Path(json_file)
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"annotation file {path} does not exist{hint and '; '}{hint}") from error
    except OSError as error:
        raise DatasetError(f"annotation file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # also what bytes that are no text raise
        raise DatasetError(
            f"annotation file {path} is not valid JSON ({error}); it may be cut off: fetch or "
            "write it again"
        ) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DatasetError(
                f"annotation file {path} has no list {key!r}; give a COCO-format instance file, an "
                "object with the lists 'images', 'annotations' and 'categories'"
            )
    return data


def category_names(data: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[int, str]:
    """The name of each category id of a COCO-format file, in file order.

    White space around the names is removed, as it is in a vocabulary.

    Raises:
        DatasetError: an entry lacks its id or name, its id cannot be one, or one of them occurs
            twice.
    """
    names: dict[int, str] = {}
    for entry in data["categories"]:
        if not isinstance(entry, dict) or not {"id", "name"} <= entry.keys():
            raise DatasetError(f"annotation file {path}: category {entry!r} needs 'id' and 'name'")
        if not is_id(entry["id"], names):
            raise DatasetError(f"annotation file {path}: category {entry!r} {ID_REMEDY}")
        name = str(entry["name"]).strip()
        if entry["id"] in names or name in names.values():
            raise DatasetError(
                f"annotation file {path}: category id {entry['id']} or its name {name!r} occurs "
                "twice; give each category one id and one name"
            )
        names[entry["id"]] = name
    return names


def vocabulary_ids(
    data: Mapping[str, Any], path: str | os.PathLike[str], vocabulary: Vocabulary
) -> dict[int, int]:
    """Category id of a file -> index in the vocabulary, for the categories that are in both.

    Raises:
        DatasetError: see :func:`category_names`.
    """
    index = {label: i for i, label in enumerate(vocabulary.labels)}
    return {i: index[name] for i, name in category_names(data, path).items() if name in index}


def image_file_name(image: dict[str, Any]) -> str:
    """Where an image is below the folder of the images; empty if its entry does not say.

    Without a "file_name" (LVIS) that is the last two components of its "coco_url".
    """
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str) and name:
        return name
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) and "/" in url else ""


def datasets_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the data sets: ``root``, or ``$DETECTRON2_DATASETS``, or else "datasets"."""
    return Path(root if root is not None else os.environ.get("DETECTRON2_DATASETS", "datasets"))


def whole(value: Any) -> Any:
    """An id or a size as a whole number, where JSON has it with a point: 1.0 is 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
