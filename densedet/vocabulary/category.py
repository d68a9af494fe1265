"""One category of a vocabulary."""

import html
import reprlib
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from densedet.errors import VocabularyError

Kind = Literal["thing", "stuff"]
Frequency = Literal["r", "c", "f"]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
shown = _SHORT.repr
"""``repr`` for messages, of anything that a file may hold: short, and not deep."""


def _folded() -> dict[int, str | None]:
    """What CLIP's tokenizer (ftfy in it) makes of single characters; None for nothing."""
    ignored = ((0x00, 0x08), (0x0B, 0x0B), (0x0E, 0x1F), (0x7F, 0x7F), (0x206A, 0x206F))
    table: dict[int, str | None] = {c: None for a, b in ignored for c in range(a, b + 1)}
    table[0xFEFF] = None
    for code in (*range(0xFB00, 0xFB07), *range(0xFF01, 0xFFEF)):  # ligatures, full-width forms
        table[code] = unicodedata.normalize("NFKC", chr(code))
    table.update(dict.fromkeys(map(ord, "\u02bc\u2018\u2019\u201a\u201b"), "'"))
    table.update(dict.fromkeys(map(ord, "\u201c\u201d\u201e\u201f"), '"'))
    return table


_FOLDED = _folded()


def prompt_key(name: str) -> str:
    """The form in which two names count as the same prompt.

    CLIP's tokenizer lower-cases, collapses white space, composes Unicode (NFC) and unifies quotes,
    full-width forms and HTML entities; the templates turn underscores into spaces. So
    "Remote_control" and "remote  control" have the same embedding.
    """
    if not (name.isascii() and name.isprintable() and "&" not in name):
        text = unicodedata.normalize("NFC", name.translate(_FOLDED))
        name = html.unescape(html.unescape(text))
    return " ".join(name.replace("_", " ").split()).lower()


@dataclass(frozen=True)
class Category:
    """What the user sees, what is prompted, and what the training knew of it.

    White space around the names is removed.

    Args:
        label: the name in the results, the user's own string.
        synonyms: the names that are prompted, at least one; empty means ``(label,)``. The label
            itself is prompted only if it is one of them: prompt is not label.
        kind: "thing" (countable, has boxes) or "stuff" (COCO panoptic's distinction).
        seen: whether the training had annotations of it.
        frequency: LVIS's "r" (rare), "c" (common), "f" (frequent), or None.

    Raises:
        VocabularyError: an empty name, a synonym given twice, an unknown kind or frequency.
    """

    label: str
    synonyms: tuple[str, ...] = ()
    kind: Kind = "thing"
    seen: bool = True
    frequency: Frequency | None = None

    def __post_init__(self) -> None:
        label = _clean(self.label, "label")
        if isinstance(self.synonyms, str):
            raise VocabularyError(
                f"category {shown(label)}: synonyms must be a list of names, got "
                f"{shown(self.synonyms)}"
            )
        synonyms = tuple(
            _clean(name, f"synonym of category {shown(label)}") for name in self.synonyms
        )
        object.__setattr__(self, "label", label)
        object.__setattr__(self, "synonyms", synonyms or (label,))
        self._check_synonyms()
        self._check_choice("kind", self.kind, get_args(Kind))
        self._check_choice("frequency", self.frequency, (None, *get_args(Frequency)))
        self._check_choice("seen", self.seen, (True, False))

    def _check_synonyms(self) -> None:
        first: dict[str, str] = {}
        for name in self.synonyms:
            key = prompt_key(name)
            if key in first:
                raise VocabularyError(
                    f"category {shown(self.label)}: the synonyms {first[key]!r} and {name!r} are "
                    "the same prompt; remove one"
                )
            first[key] = name

    def _check_choice(self, field: str, value: object, choices: tuple[object, ...]) -> None:
        # Compares types too: 1 == True, but would give another digest.
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise VocabularyError(
                f"category {shown(self.label)}: {field} is {shown(value)}; it must be one of "
                + ", ".join(map(repr, choices))
            )


def _clean(name: object, what: str) -> str:
    if not isinstance(name, str):
        raise VocabularyError(f"a {what} must be a string, got {shown(name)}")
    if not prompt_key(name):
        raise VocabularyError(f"a {what} is empty ({shown(name)}); give it a name or remove it")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise VocabularyError(f"the {what} {name!r} is not valid Unicode text; type it again")
    return name.strip()
