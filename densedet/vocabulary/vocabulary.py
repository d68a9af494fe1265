"""The vocabulary: an ordered tuple of categories, pure data, handed to every head."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

from densedet.errors import VocabularyError
from densedet.files import write_text
from densedet.vocabulary import readers, typed
from densedet.vocabulary.category import Category, Kind, prompt_key
from densedet.vocabulary.class_lists import CLASS_LISTS, load_class_list


@dataclass(frozen=True)
class Vocabulary:
    """The C categories that a model tells apart, with P >= C prompted names in all.

    Args:
        categories: at least one; labels and prompted names are unique. Names that CLIP cannot tell
            apart (letter case, underscore against space) count as equal.

    Raises:
        VocabularyError: no category, a label used twice, a synonym under two labels.
    """

    categories: tuple[Category, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        if not self.categories:
            raise VocabularyError("the vocabulary is empty; name at least one category")
        self._check_unique()

    def _check_unique(self) -> None:
        labels: dict[str, str] = {}
        owners: dict[str, str] = {}
        for number, category in enumerate(self.categories, 1):
            other = labels.setdefault(prompt_key(category.label), category.label)
            if len(labels) < number:
                raise VocabularyError(
                    f"category {number}: the label {category.label!r} is already used (as "
                    f"{other!r}); rename or remove one"
                )
            for name in category.synonyms:
                owner = owners.setdefault(prompt_key(name), category.label)
                if owner != category.label:
                    raise VocabularyError(
                        f"category {number}: the synonym {name!r} of {category.label!r} also "
                        f"belongs to {owner!r}; keep it under one label"
                    )

    def __len__(self) -> int:
        return len(self.categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self.categories)

    @property
    def labels(self) -> tuple[str, ...]:
        """The C labels."""
        return tuple(category.label for category in self.categories)

    @property
    def synonyms(self) -> tuple[str, ...]:
        """The P prompted names, those of one category side by side."""
        return tuple(name for category in self.categories for name in category.synonyms)

    @property
    def groups(self) -> tuple[int, ...]:
        """For each of the P prompted names the index of its category."""
        return tuple(i for i, category in enumerate(self.categories) for _ in category.synonyms)

    @property
    def seen(self) -> tuple[bool, ...]:
        """For each of the C categories whether the training had it."""
        return tuple(category.seen for category in self.categories)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """For each of the C categories "thing" or "stuff"."""
        return tuple(category.kind for category in self.categories)

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {category.label: i for i, category in enumerate(self.categories)}

    def index(self, label: str) -> int:
        """The position of the category with this label (white space around it is ignored).

        Raises:
            VocabularyError: no such label; the message has the close matches.
        """
        position = self._positions.get(label.strip())
        if position is None:
            raise VocabularyError(
                f"the vocabulary has no label {label!r}{self._hint(label)}; use one of its "
                f"{len(self)} labels or add the category"
            )
        return position

    def _hint(self, label: str) -> str:
        for category in self.categories:
            if prompt_key(label) in map(prompt_key, category.synonyms):
                return f" (it is a prompt of {category.label!r})"
        close = get_close_matches(label, self.labels)
        return f" (close: {', '.join(map(repr, close))})" if close else ""

    def first_difference(self, other: "Vocabulary") -> tuple[int, str, str] | None:
        """Where the labels of two vocabularies differ first; None if they are the same.

        Returns:
            The index, the label here and the label in ``other``, quoted for a message; "nothing" if
            there are no more.
        """
        for i, pair in enumerate(zip_longest(self.labels, other.labels)):
            if pair[0] != pair[1]:
                own, their = ("nothing" if label is None else repr(label) for label in pair)
                return i, own, their
        return None

    def of_kind(self, kind: Kind) -> "Vocabulary":
        """The categories of one kind, in the same order.

        Raises:
            VocabularyError: unknown kind, or there is no such category.
        """
        if kind not in ("thing", "stuff"):
            raise VocabularyError(f"unknown kind {kind!r}; choose 'thing' or 'stuff'")
        chosen = tuple(category for category in self.categories if category.kind == kind)
        if not chosen:
            raise VocabularyError(f"the vocabulary has no category of kind {kind!r}")
        return Vocabulary(chosen)

    def with_unseen(self, labels: Iterable[str]) -> "Vocabulary":
        """The same categories, with exactly these labels marked as unseen.

        Raises:
            VocabularyError: a label that is not in the vocabulary.
        """
        if isinstance(labels, str):
            raise VocabularyError(f"expected a list of labels, got the text {labels!r}")
        unseen = {self.index(label) for label in labels}
        return Vocabulary(
            tuple(replace(category, seen=i not in unseen) for i, category in enumerate(self))
        )

    def with_stuff(self, stuff: "Vocabulary") -> "Vocabulary":
        """These categories and, after them, those of ``stuff`` with the kind "stuff".

        Raises:
            VocabularyError: they share a label or a synonym.
        """
        return Vocabulary(
            (*self.categories, *(replace(category, kind="stuff") for category in stuff))
        )

    def seen_by(self, trained: "Vocabulary") -> "Vocabulary":
        """The same categories, seen where training had labels of one of their names.

        Args:
            trained: of the training; its unseen categories had no labels.
        """
        known = {prompt_key(name) for c in trained if c.seen for name in (c.label, *c.synonyms)}
        return self.with_unseen(
            c.label for c in self if known.isdisjoint(map(prompt_key, (c.label, *c.synonyms)))
        )

    def digest(self) -> str:
        """SHA-256 (hex) of the content: every field of every category, and their order."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(b"densedet.vocabulary/1\n" + text.encode("ascii")).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, read by :meth:`from_dict`."""
        records = [asdict(category) for category in self.categories]
        return {"categories": [{**r, "synonyms": list(r["synonyms"])} for r in records]}

    def to_text(self) -> str:
        """The short form that :meth:`parse` reads: ``"cat,kitten;remote control"``.

        Raises:
            VocabularyError: the short form cannot hold it: a name with "," or ";", a label that is
                not its own first synonym, or kind, seen or frequency that are not the defaults.
        """
        return ";".join(_line(category) for category in self.categories)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``.json`` (everything) or ``.txt`` (one category a line; see :meth:`to_text`).

        Raises:
            VocabularyError: another suffix, or the short form cannot hold it.
            OutputError: the file cannot be written.
        """
        path = Path(path)
        with readers.located(path):
            if path.suffix.lower() == ".json":
                text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False)
            elif path.suffix.lower() == ".txt":
                text = "\n".join(_line(category) for category in self.categories)
                if typed.categories_from_lines(text) != self.categories:
                    raise VocabularyError("lines would be read as numbered; use .json")
            else:
                raise VocabularyError("a vocabulary is saved as .json or .txt; change the suffix")
        write_text(path, text + "\n")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Vocabulary":
        """Read what :meth:`to_dict` returns; only ``label`` is required in a record."""
        return cls(readers.categories_from_records(data))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Read a ``.json``, ``.yaml`` or ``.txt`` file.

        JSON and YAML may hold what :meth:`save` writes, a list as in :meth:`from_names`, a
        COCO-format annotation file, or the names of another tool (YOLO, Hugging Face). Text has one
        category a line, numbered or not, with commas between its synonyms.

        Raises:
            VocabularyError: naming the file, the record and the remedy.
        """
        with readers.located(Path(path)):
            return cls(typed.categories_from_file(Path(path)))

    @classmethod
    def from_names(cls, names: Iterable[str | Sequence[str]]) -> "Vocabulary":
        """Read labels, or lists of synonyms whose first is the label; commas are not special."""
        return cls(readers.categories_from_names(names))

    @classmethod
    def parse(cls, text: str) -> "Vocabulary":
        """Read ``"cat,kitten;remote control"``: the first name of each category is its label."""
        return cls(readers.categories_from_text(text))

    @classmethod
    def typed(cls, text: str) -> "Vocabulary":
        """Read what people type: as :meth:`parse`, or in the form of another tool.

        That is one category a line, numbered or not; Grounding DINO's ``"cat . dog ."``; or a list
        or an object as in a JSON or YAML file. It is never the name of a file or a class list.
        """
        return cls(typed.categories_from_typed(text))

    def describe(self) -> str:
        """One line that says how it was understood, such as "2 categories: cat; remote control"."""
        return typed.describe(self.labels, self.synonyms)

    @classmethod
    def named(cls, name: str, kind: Kind | None = None) -> "Vocabulary":
        """A shipped class list (:data:`densedet.vocabulary.CLASS_LISTS`), or one kind of it."""
        vocabulary = cls(load_class_list(name))
        return vocabulary if kind is None else vocabulary.of_kind(kind)

    @classmethod
    def from_coco(cls, source: str | os.PathLike[str] | Mapping[str, Any]) -> "Vocabulary":
        """The categories of a COCO-format annotation file (or its content), by ascending id."""
        if isinstance(source, Mapping):
            return cls(readers.categories_from_coco(source))
        with readers.located(Path(source)):
            data = readers.read_json(Path(source))
            if not isinstance(data, dict):
                raise VocabularyError("not a COCO-format file: it holds no JSON object")
            return cls(readers.categories_from_coco(data))

    @classmethod
    def resolve(cls, spec: "VocabularyLike") -> "Vocabulary":
        """Whatever a user may write for a vocabulary.

        Args:
            spec: a vocabulary; a list as in :meth:`from_names`; a mapping as in :meth:`from_dict`
                or from ids to names; a path to a file as of :meth:`from_file`; the name of a class
                list; or text as of :meth:`typed`, tried in this order.

        Raises:
            VocabularyError: a missing file, or text that looks like a misspelt class list. Write
                ``"name;"`` for a category that happens to be called like one.
        """
        if isinstance(spec, Vocabulary):
            return spec
        if isinstance(spec, str):
            return cls._resolve_text(spec)
        if isinstance(spec, os.PathLike):
            return cls.from_file(spec)
        if isinstance(spec, Mapping):
            return cls(readers.categories_from_data(dict(spec)))
        if isinstance(spec, Sequence):
            return cls.from_names(spec)
        raise VocabularyError(f"cannot make a vocabulary of {type(spec).__name__} {spec!r}")

    @classmethod
    def _resolve_text(cls, text: str) -> "Vocabulary":
        if ";" not in text and (_has_suffix(text) or _is_a_file(text)):
            return cls.from_file(text)
        if _is_like_class_list(text.strip()):
            return cls.named(text.strip())
        return cls.typed(text)


VocabularyLike = Vocabulary | str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any]
"""What :meth:`Vocabulary.resolve` accepts."""


def _has_suffix(text: str) -> bool:
    return text.lower().endswith(typed.SUFFIXES) and len(text.splitlines()) == 1


def _is_a_file(text: str) -> bool:
    """Whether text is a file, or a pipe or a folder, and looks like one: with "/" or a suffix."""
    return bool(Path(text).suffix or os.path.dirname(text)) and os.path.exists(text)


def _is_like_class_list(text: str) -> bool:
    """Whether text names a class list or is more likely misspelt than a category: "ade20k"."""
    if text in CLASS_LISTS:
        return True
    is_identifier = re.fullmatch(r"\w*[_\d]\w*", text) is not None
    return is_identifier and bool(get_close_matches(text, CLASS_LISTS, cutoff=0.7))


def _line(category: Category) -> str:
    names = category.synonyms
    if category != Category(category.label, names):
        problem = "its kind, seen or frequency would be lost"
    elif names[0] != category.label:
        problem = "its label is not its first synonym"
    elif any(re.search("[,;]", name) or len(name.splitlines()) > 1 for name in names):
        problem = "a name has a ',', a ';' or a line break"
    else:
        return ",".join(names)
    raise VocabularyError(f"category {category.label!r} does not fit in text: {problem}; use .json")
