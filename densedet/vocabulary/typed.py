"""Vocabularies as people type them: our own short form, and those of other tools."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from densedet.errors import VocabularyError
from densedet.vocabulary import readers
from densedet.vocabulary.category import Category

SUFFIXES = (".json", ".txt", ".names", ".yaml", ".yml")
# as Chinese and Japanese keyboards have them
_FULL_WIDTH = str.maketrans({"\uff1b": ";", "\uff0c": ",", "\u3001": ","})
# "1. cat", "0: cat", "2) cat", "3<TAB>cat"
_NUMBER = re.compile(r"(\d{1,9})(?:\s*[:)]\s*|\s*\.\s+| *\t\s*)(?=\S)")
_QUOTED = re.compile(r"""(?:^|(?<=[,;\n]))[ \t]*(["'])([^"';,\n]*)\1[ \t]*(?=[,;\n]|$)""")
_BULLET = re.compile(r"[-*\u2022]\s+(?=\S)")
_SPACED_DOT = re.compile(r"\s+\.(?:\s+|$)")  # "cat . dog ."
_FINAL_DOT = re.compile(r"\.(?:\s+|$)")  # "a cat. a dog."
_SHOWN = 8


def categories_from_typed(text: str) -> tuple[Category, ...]:
    """Read a vocabulary that was typed.

    It may be the short form, ``"cat,kitten;remote control"``; lines, numbered or not; Grounding
    DINO's ``"cat . dog ."`` or ``"a cat. a dog."``; a JSON or YAML list or object, such as the
    ``names`` of YOLO.

    Raises:
        VocabularyError: it is none of these.
    """
    text = text.translate(_FULL_WIDTH).strip().lstrip("\ufeff")
    if not text:
        return ()
    if text.startswith(("[", "{")):
        return _categories_from_brackets(text)
    if re.search(r"^names\s*:", text, re.MULTILINE):  # other keys may stand before it
        return _categories_from_yaml(text)
    text = _QUOTED.sub(r"\2", text)  # "cat","dog"
    if len(text.splitlines()) > 1:
        return categories_from_lines(text)
    if ";" not in text:
        return readers.categories_from_pieces(
            [(i, p) for i, p in enumerate(_between_dots(text), 1)]
        )
    return readers.categories_from_text(text)


def categories_from_file(path: Path) -> tuple[Category, ...]:
    """Read a ``.json``, ``.yaml`` or ``.yml`` file, or lines: ``.txt`` or ``.names``.

    Raises:
        VocabularyError: it is none of these; the message does not name the file.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and path.is_file():
        raise VocabularyError("unknown kind of file; a vocabulary is a .json, .yaml or .txt file")
    text = readers.read_text(path)
    if suffix in (".yaml", ".yml"):
        return _categories_from_yaml(text)
    if suffix == ".json":
        return readers.categories_from_data(readers.decode_json(text))
    return categories_from_lines(text)


def categories_from_lines(text: str) -> tuple[Category, ...]:
    """Read lines of categories, which may be numbered or have bullets; or more, between ";".

    Raises:
        VocabularyError: an empty name, or numbers before some of the lines only.
    """
    lines = [
        (i, line.strip()) for i, line in enumerate(text.splitlines(), 1) if line.strip(" \t;,")
    ]
    if len(lines) > 1 and all(line.endswith(",") for _, line in lines[:-1]):  # "cat,", "dog"
        lines = [(i, line.removesuffix(",")) for i, line in lines]
    pieces = []
    for number, line in _without_marks(lines):
        pieces += [(number, name) for name in line.removesuffix(";").split(";")]
    return readers.categories_from_pieces(pieces, "line")


def describe(labels: Sequence[str], names: Sequence[str]) -> str:
    """One line that says how a vocabulary was understood; see :meth:`Vocabulary.describe`.

    Args:
        labels: C, of the categories.
        names: P, that are prompted.
    """
    if len(labels) == 1 and len(names) > 1:
        return (
            f"1 category, {labels[0]!r}, with {len(names)} names: {_list(names, ', ')}; for "
            f"{len(names)} categories write {_list(names, ';')}"
        )
    if len(labels) == 1 and re.search(r"[|\t]", labels[0]):
        return f"1 category: {labels[0]}; for several write ';' between them"
    word = "category" if len(labels) == 1 else "categories"
    extra = f" with {len(names)} names" if len(names) > len(labels) else ""
    return f"{len(labels)} {word}{extra}: {_list(labels, '; ')}"


def _list(names: Sequence[str], separator: str) -> str:
    some = [*names[:_SHOWN], "..."] if len(names) > _SHOWN + 1 else names
    return separator.join(some)


def _between_dots(text: str) -> list[str]:
    """The names of Grounding DINO's captions; a dot inside a name, "St. Bernard", is none's end."""
    if _SPACED_DOT.search(text):
        pieces = _SPACED_DOT.split(text)
    elif text.endswith(".") and "," not in text:
        pieces = _FINAL_DOT.split(text)
    else:
        return [text]
    return [piece for piece in pieces if piece.strip()] or [text]


def _without_marks(lines: Sequence[tuple[int, str]]) -> Iterable[tuple[int, str]]:
    """Without numbers or bullets, if several lines have them."""
    bullets = [_BULLET.match(line) for _, line in lines]
    if len(lines) < 2:
        return lines
    if all(bullets):
        return [(i, line[m.end() :]) for (i, line), m in zip(lines, bullets, strict=True) if m]
    marks = [_NUMBER.match(line) for _, line in lines]
    numbers = [int(mark[1]) for mark in marks if mark]
    if len(numbers) < 2:
        return lines
    if len(numbers) < len(lines):
        bare = next(i for (i, _), mark in zip(lines, marks, strict=True) if not mark)
        raise VocabularyError(f"line {bare} has no number, others have; number all lines or none")
    if any(a >= b for a, b in zip(numbers, numbers[1:], strict=False)):
        raise VocabularyError("the numbers of the lines do not rise; correct or remove them")
    return [(i, line[m.end() :]) for (i, line), m in zip(lines, marks, strict=True) if m]


def _categories_from_brackets(text: str) -> tuple[Category, ...]:
    try:
        data = readers.decode_json(text)
    except VocabularyError:  # names in single quotes or none
        return _categories_from_yaml(text)
    return readers.categories_from_data(data)


def _categories_from_yaml(text: str) -> tuple[Category, ...]:
    from densedet.vocabulary.yaml_text import decode_yaml  # PyYAML only where it is needed

    return readers.categories_from_data(decode_yaml(text))
