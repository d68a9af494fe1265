"""One category of a vocabulary."""

from dataclasses import dataclass
from typing import Literal, get_args

from densedet.errors import VocabularyError

Kind = Literal["thing", "stuff"]
Frequency = Literal["r", "c", "f"]


def prompt_key(name: str) -> str:
    """The form in which two names count as the same prompt.

    CLIP's tokenizer lower-cases and collapses white space, and the templates turn underscores into
    spaces, so "Remote_control" and "remote  control" have the same embedding.
    """
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
                f"category {label!r}: synonyms must be a list of names, got {self.synonyms!r}"
            )
        synonyms = tuple(_clean(name, f"synonym of category {label!r}") for name in self.synonyms)
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
                    f"category {self.label!r}: the synonyms {first[key]!r} and {name!r} are the "
                    "same prompt; remove one"
                )
            first[key] = name

    def _check_choice(self, field: str, value: object, choices: tuple[object, ...]) -> None:
        # Compares types too: 1 == True, but would give another digest.
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise VocabularyError(
                f"category {self.label!r}: {field} is {value!r}; it must be one of "
                + ", ".join(map(repr, choices))
            )


def _clean(name: object, what: str) -> str:
    if not isinstance(name, str):
        raise VocabularyError(f"a {what} must be a string, got {name!r}")
    if not prompt_key(name):
        raise VocabularyError(f"a {what} is empty ({name!r}); give it a name or remove it")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise VocabularyError(f"the {what} {name!r} is not valid Unicode text; type it again")
    return name.strip()
