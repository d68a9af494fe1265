"""From text, lists and files to categories. Every error names the record and the remedy."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densedet.errors import VocabularyError
from densedet.files import check_regular
from densedet.vocabulary.category import Category, Kind, shown

_NAMES = ("names", "classes", "id2label", "label2id", "thing_classes")  # YOLO, Hugging Face, ...
FIELDS = ("label", "synonyms", "kind", "seen", "frequency")


@contextmanager
def located(place: object) -> Iterator[None]:
    """Put the file or record in front of the message of a ``VocabularyError``."""
    try:
        yield
    except VocabularyError as error:
        raise VocabularyError(f"{place}: {error}") from error


def categories_from_text(text: str) -> tuple[Category, ...]:
    """Read ``"cat,kitten;remote control"``: the first name of a category is its label.

    White space around names and one ``;`` at the end do not matter.
    """
    pieces = text.split(";")
    if not pieces[-1].strip():
        pieces.pop()
    return categories_from_pieces(list(enumerate(pieces, 1)))


def categories_from_pieces(
    pieces: Iterable[tuple[int, str]], what: str = "category"
) -> tuple[Category, ...]:
    """Read numbered pieces of text, each the names of a category between commas."""
    return tuple(_category_from_line(text, f"{what} {number}") for number, text in pieces)


def categories_from_names(names: Iterable[str | Sequence[str]]) -> tuple[Category, ...]:
    """Read a list whose entries are a label or a list of synonyms, the first being the label."""
    if isinstance(names, str):
        raise VocabularyError(
            f"expected a list of names, got the text {shown(names)}; use Vocabulary.parse for text"
        )
    return tuple(_category_from_names(entry, i) for i, entry in enumerate(names, 1))


def categories_from_records(data: Mapping[str, Any]) -> tuple[Category, ...]:
    """Read the form that ``Vocabulary.to_dict`` writes."""
    return tuple(_category_from_record(r, i) for i, r in enumerate(_records(data), 1))


def categories_from_coco(data: Mapping[str, Any]) -> tuple[Category, ...]:
    """Read ``data["categories"]`` of a COCO-format file, in ascending order of ``id``.

    ``isthing`` (COCO panoptic) gives the kind, ``frequency`` (LVIS) the frequency; LVIS's
    ``synonyms`` are not used: see ``class_lists``.
    """
    found: dict[int, Category] = {}
    for number, record in enumerate(_records(data), 1):
        with located(f"category {number}"):
            identifier, category = _category_from_coco(record)
            if identifier in found:
                raise VocabularyError(f"id {identifier} is used twice; category ids must differ")
            found[identifier] = category
    return tuple(found[identifier] for identifier in sorted(found))


def categories_from_data(data: object) -> tuple[Category, ...]:
    """Read decoded JSON or YAML.

    It may be our own form; COCO format, or its categories alone; a list of names; an object from
    ids to names or from names to ids; from labels to lists of what is prompted; or one that has
    such a thing in "names" (YOLO), "id2label" (Hugging Face) or the like.
    """
    if isinstance(data, list):
        if data and all(isinstance(entry, dict) for entry in data):
            return categories_from_data({"categories": data})
        return categories_from_names(data)
    if not isinstance(data, dict):
        raise VocabularyError(
            f"expected a list of names or an object with 'categories', got {type(data).__name__}"
        )
    if "categories" not in data:
        return _categories_from_object(data)
    records = _records(data)
    is_coco = any(isinstance(r, dict) and "name" in r and "label" not in r for r in records)
    return categories_from_coco(data) if is_coco else categories_from_records(data)


def read_json(path: Path) -> object:
    """Decode a JSON file; errors do not name the file, so wrap in :func:`located`."""
    return decode_json(read_text(path))


def decode_json(text: str) -> object:
    """Decode JSON; VocabularyError with line and column where it is not valid."""
    # a class list may not have a key twice; of annotation files, hooks would double the time
    hook = None if '"categories"' in text else _unique_keys
    try:
        return json.loads(text, object_pairs_hook=hook)
    except VocabularyError:
        raise
    except json.JSONDecodeError as error:
        raise VocabularyError(
            f"not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); correct or "
            "replace the file"
        ) from error
    except (ValueError, RecursionError) as error:  # a huge number, a thousand brackets
        raise VocabularyError(f"cannot be decoded ({error}); replace the file") from error


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; errors do not name it, so wrap in :func:`located`."""
    try:
        check_regular(path)
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise VocabularyError(f"cannot be read ({error.strerror}); check the path") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise VocabularyError(f"the key {twice!r} stands there twice; remove one")
    return found


def _categories_from_object(data: Mapping[Any, Any]) -> tuple[Category, ...]:
    """Read an object that is not of categories; see :func:`categories_from_data`."""
    key = next((name for name in _NAMES if name in data), None)
    if key is not None:
        with located(repr(key)):
            if not isinstance(data[key], list | dict):
                raise VocabularyError(f"expected a list or an object, got {shown(data[key])}")
            found = categories_from_data(data[key])
            _check_count(data.get("nc"), len(found))
            return found
    if data and all(map(_is_id, data)):
        return categories_from_names([data[i] for i in sorted(data, key=int)])
    if data and all(map(_is_id, data.values())):
        return categories_from_names(sorted(data, key=lambda name: int(data[name])))
    if data and all(isinstance(names, list) for names in data.values()):
        return tuple(
            _category_from_record({"label": k, "synonyms": v}, i)
            for i, (k, v) in enumerate(data.items(), 1)
        )
    raise VocabularyError(
        "no list 'categories' or 'names' in it; is this a vocabulary or a COCO file?"
    )


def _check_count(stated: object, found: int) -> None:
    """Compare with YOLO's number of classes, where it is given."""
    if stated is not None and str(stated) != str(found):
        raise VocabularyError(f"{found} names, but 'nc' says {stated!s:.20}; correct one of them")


def _is_id(value: object) -> bool:
    """Whether it is a number of a category, which JSON's keys and YAML have as text."""
    return type(value) is int or (isinstance(value, str) and value.isdecimal() and len(value) < 10)


def _records(data: Mapping[str, Any]) -> Sequence[Any]:
    records = data.get("categories")
    if isinstance(records, str) or not isinstance(records, Sequence):
        raise VocabularyError("no list 'categories' in it; is this a vocabulary or COCO file?")
    return records


def _category_from_line(line: str, place: str) -> Category:
    names = tuple(name.strip() for name in line.split(","))
    with located(place):
        if not all(names):
            raise VocabularyError(f"an empty name in {shown(line)}; remove the extra ',' or ';'")
        return Category(names[0], names)


def _category_from_names(entry: object, number: int) -> Category:
    with located(f"category {number}"):
        if isinstance(entry, str):
            return Category(entry)
        if not isinstance(entry, Sequence):
            raise VocabularyError(f"expected a name or a list of names, got {shown(entry)}")
        if not entry:
            raise VocabularyError("an empty list of names; name the category or remove it")
        return Category(entry[0], tuple(entry))


def _category_from_record(record: object, number: int) -> Category:
    with located(f"category {number}"):
        if not isinstance(record, Mapping) or "label" not in record:
            raise VocabularyError(f"expected an object with a 'label', got {shown(record)}")
        unknown = [key for key in record if key not in FIELDS]
        if unknown:
            raise VocabularyError(f"unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
        synonyms = record.get("synonyms", ())
        if isinstance(synonyms, str) or not isinstance(synonyms, Sequence):
            raise VocabularyError(f"synonyms must be a list of names, got {shown(synonyms)}")
        return Category(**{**record, "synonyms": tuple(synonyms)})


def _category_from_coco(record: object) -> tuple[int, Category]:
    if not isinstance(record, Mapping) or not isinstance(record.get("id"), int):
        raise VocabularyError(f"expected an object with an integer 'id', got {shown(record)}")
    if "name" not in record:
        raise VocabularyError(f"no 'name' in {shown(record)}")
    kind: Kind = "thing" if record.get("isthing", 1) else "stuff"
    return record["id"], Category(record["name"], (), kind, frequency=record.get("frequency"))
