"""From text, lists and files to categories. Every error names the record and the remedy."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densedet.errors import VocabularyError
from densedet.vocabulary.category import Category, Kind

SUFFIXES = (".json", ".txt")
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
    return tuple(_category_from_line(piece, f"category {i}") for i, piece in enumerate(pieces, 1))


def categories_from_names(names: Iterable[str | Sequence[str]]) -> tuple[Category, ...]:
    """Read a list whose entries are a label or a list of synonyms, the first being the label."""
    if isinstance(names, str):
        raise VocabularyError(
            f"expected a list of names, got the text {names!r}; use Vocabulary.parse for text"
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
    """Read decoded JSON: our own form, COCO format, or a list of names."""
    if isinstance(data, list):
        return categories_from_names(data)
    if not isinstance(data, dict):
        raise VocabularyError(
            f"expected a list of names or an object with 'categories', got {type(data).__name__}"
        )
    records = _records(data)
    is_coco = any(isinstance(r, dict) and "name" in r and "label" not in r for r in records)
    return categories_from_coco(data) if is_coco else categories_from_records(data)


def categories_from_file(path: Path) -> tuple[Category, ...]:
    """Read a ``.json`` file (any form above) or a ``.txt`` file (one category a line)."""
    if path.suffix.lower() not in SUFFIXES:
        raise VocabularyError("unknown kind of file; a vocabulary is a .json or a .txt file")
    text = _read(path)
    if path.suffix.lower() == ".txt":
        lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        return tuple(_category_from_line(line, f"line {i}") for i, line in lines)
    return categories_from_data(decode_json(text))


def read_json(path: Path) -> object:
    """Decode a JSON file; errors do not name the file, so wrap in :func:`located`."""
    return decode_json(_read(path))


def decode_json(text: str) -> object:
    """Decode JSON; VocabularyError with line and column where it is not valid."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise VocabularyError(
            f"not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); correct or "
            "replace the file"
        ) from error
    except (ValueError, RecursionError) as error:  # a huge number, a thousand brackets
        raise VocabularyError(f"cannot be decoded ({error}); replace the file") from error


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise VocabularyError(f"cannot be read ({error.strerror}); check the path") from error


def _records(data: Mapping[str, Any]) -> Sequence[Any]:
    records = data.get("categories")
    if isinstance(records, str) or not isinstance(records, Sequence):
        raise VocabularyError("no list 'categories' in it; is this a vocabulary or COCO file?")
    return records


def _category_from_line(line: str, place: str) -> Category:
    names = tuple(name.strip() for name in line.split(","))
    with located(place):
        if not all(names):
            raise VocabularyError(f"an empty name in {line!r}; remove the extra ',' or ';'")
        return Category(names[0], names)


def _category_from_names(entry: object, number: int) -> Category:
    with located(f"category {number}"):
        if isinstance(entry, str):
            return Category(entry)
        if not isinstance(entry, Sequence):
            raise VocabularyError(f"expected a name or a list of names, got {entry!r}")
        if not entry:
            raise VocabularyError("an empty list of names; name the category or remove it")
        return Category(entry[0], tuple(entry))


def _category_from_record(record: object, number: int) -> Category:
    with located(f"category {number}"):
        if not isinstance(record, Mapping) or "label" not in record:
            raise VocabularyError(f"expected an object with a 'label', got {record!r}")
        unknown = [key for key in record if key not in FIELDS]
        if unknown:
            raise VocabularyError(f"unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
        synonyms = record.get("synonyms", ())
        if isinstance(synonyms, str) or not isinstance(synonyms, Sequence):
            raise VocabularyError(f"synonyms must be a list of names, got {synonyms!r}")
        return Category(**{**record, "synonyms": tuple(synonyms)})


def _category_from_coco(record: object) -> tuple[int, Category]:
    if not isinstance(record, Mapping) or not isinstance(record.get("id"), int):
        raise VocabularyError(f"expected an object with an integer 'id', got {record!r}")
    if "name" not in record:
        raise VocabularyError(f"no 'name' in {record!r}")
    kind: Kind = "thing" if record.get("isthing", 1) else "stuff"
    return record["id"], Category(record["name"], (), kind, frequency=record.get("frequency"))
