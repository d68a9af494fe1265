"""The outline of a COCO-format annotation file: its lists and its categories."""

import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

ID_REMEDY = "has an 'id' that cannot be one; give whole numbers, or text to all of them"
LISTS = ("images", "annotations", "categories")
_FORM = (
    "give a COCO-format instance file, an object with the lists 'images', 'annotations' and "
    "'categories'"
)


def is_id(value: Any, others: Iterable[Any] = ()) -> bool:
    """Whether a value from JSON can be an id: a whole number or text, as the ``others`` are."""
    return type(value) in (int, str) and type(value) is type(next(iter(others), value))


def as_id(value: Any) -> Any:
    """The same value, but 1 in place of 1.0, which is the same id."""
    return int(value) if type(value) is float and value.is_integer() else value


class ById(dict[Any, Any]):
    """A mapping by id that finds 1 under 1.0 and "1", and "1" under 1, where that is the only one.

    The ids of a file have one type, so there is no other that could be meant.
    """

    def __missing__(self, key: Any) -> Any:
        other: Any = str(key) if type(key) is int else None
        if isinstance(key, str) and len(key) < 20 and key.strip().isdecimal():
            other = int(key)
        if other is None or other not in self:
            raise KeyError(key)
        return self[other]


def read_annotation_file(json_file: str | os.PathLike[str], hint: str = "") -> dict[str, Any]:
    """Read a COCO-format file and check its outline.

    Args:
        json_file: path. A byte order mark is skipped; UTF-16 and UTF-32 are understood too.
        hint: added to the message if the file is missing.

    Raises:
        DatasetError: missing, no regular file, not JSON, or without the lists "images",
            "annotations", "categories", or with one of them twice.
    """
    path = Path(json_file)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DatasetError(f"annotation file {path} is no regular file; give a JSON file")
        data = _decode(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"annotation file {path} does not exist{hint and '; '}{hint}") from error
    except OSError as error:
        raise DatasetError(f"annotation file {path} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise DatasetError(
            f"annotation file {path} is not valid JSON of a data set: its brackets are nested too "
            f"deeply; {_FORM}"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"annotation file {path} is not valid JSON: it is not {error.encoding.upper()} text "
            f"({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetError(
            f"annotation file {path} is not valid JSON ({error}); it may be cut off: fetch or "
            "write it again"
        ) from error
    for key in LISTS:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise DatasetError(f"annotation file {path} has no list {key!r}; {_FORM}")
    return data


def _decode(content: bytes) -> Any:
    """Decode JSON in which no object has two lists of the same name (of which one would be lost).

    Only a file in which such a name occurs twice, as a name or as text, is read with care.
    """
    if all(content.count(b'"%s"' % key.encode()) < 2 for key in LISTS):
        return json.loads(content)
    return json.loads(content, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = [key for key in LISTS if counts[key] > 1]
        if twice:
            raise ValueError(f"an object has two entries {twice[0]!r}, put them into one")
    return found


def category_names(data: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[int, str]:
    """The name of each category id of a COCO-format file, in file order.

    White space around the names is removed, as it is in a vocabulary.

    Raises:
        DatasetError: an entry lacks its id or name, its id cannot be one, or one of them occurs
            twice.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    for entry in data["categories"]:
        name = _name(entry.get("name")) if isinstance(entry, dict) else ""
        if not name or "id" not in entry:
            raise DatasetError(f"annotation file {path}: category {entry!r} needs 'id' and 'name'")
        number = as_id(entry["id"])
        if not is_id(number, names):
            raise DatasetError(f"annotation file {path}: category {entry!r} {ID_REMEDY}")
        if number in names or name in taken:
            raise DatasetError(
                f"annotation file {path}: category id {number} or its name {name!r} occurs "
                "twice; give each category one id and one name"
            )
        names[number] = name
        taken.add(name)
    return names


def _name(value: Any) -> str:
    """The name of a category, also one that is a number; empty if it cannot be one."""
    return str(value).strip() if type(value) in (str, int, float) else ""


def vocabulary_ids(
    data: Mapping[str, Any], path: str | os.PathLike[str], vocabulary: Vocabulary
) -> dict[int, int]:
    """Category id of a file -> index in the vocabulary, for the categories that are in both.

    Raises:
        DatasetError: see :func:`category_names`.
    """
    return named_ids(category_names(data, path), vocabulary)


def named_ids(names: Mapping[int, str], vocabulary: Vocabulary) -> dict[int, int]:
    """Category id -> index in the vocabulary, for the names that are in it."""
    index = {label: i for i, label in enumerate(vocabulary.labels)}
    return {i: index[name] for i, name in names.items() if name in index}


def image_file_name(image: Mapping[str, Any]) -> str:
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
