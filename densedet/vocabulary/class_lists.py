"""The class lists that densedet ships, each fact once, in ``resources/*.json``.

Base lists (``coco_panoptic``, ``lvis_v1``, ``ade20k_150``, ``cityscapes_19``, ``voc_20``) are
written by ``tools/make_class_lists.py`` from Detectron2's metadata, ``coco_stuff`` holds
COCO-Stuff's 91 kinds of stuff. Everything else is derived here: COCO's 80 are the things of its
133, a split is a base list with other ``seen`` flags.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from densedet.errors import VocabularyError
from densedet.vocabulary.category import Category, prompt_key

Entry = tuple[int, Category]


@dataclass(frozen=True)
class ShapesWorldWords:
    """The words of the Shapes World; things are named ``f"{colour} {kind}"``, colour-major."""

    colours: tuple[str, ...]
    kinds: tuple[str, ...]
    stuff: tuple[str, ...]
    unseen_kinds: tuple[str, ...]


def load_class_list(name: str) -> tuple[Category, ...]:
    """The categories of a shipped class list, in its order.

    Raises:
        VocabularyError: unknown name; the message has the close matches and all choices.
    """
    return tuple(category for _, category in _entries(name))


def class_list_ids(name: str) -> tuple[int, ...]:
    """The category ids of the data set's annotation files, in the order of the class list.

    COCO's ids have gaps (1 to 90 for the 80 things), LVIS v1 has 1 to 1203, ADE20K 0 to 149 (in the
    files that Detectron2's ``prepare_ade20k_sem_seg.py`` writes), COCO-Stuff10k 0 to 170 (see
    :func:`densedet.data.register_coco_stuff10k`), Cityscapes 7 to 33 with gaps, PASCAL VOC 1 to 20,
    the Shapes World 1 to 70.

    Raises:
        VocabularyError: unknown name.
    """
    return tuple(identifier for identifier, _ in _entries(name))


def shapes_world_words() -> ShapesWorldWords:
    """The colours, kinds and stuff of the Shapes World, in the order of its class list."""
    data = _resource("shapes_world")
    fields = ("colours", "kinds", "stuff", "unseen_kinds")
    return ShapesWorldWords(**{field: tuple(data[field]) for field in fields})


def unambiguous_names(labels: Sequence[str]) -> list[tuple[str, ...]]:
    """The names in labels such as "road, route", save those that another label has as well.

    The first name of a label stays where no other label has it first, or nothing else is left.

    Returns:
        For each label its names, at least one, in order.
    """
    names = [[part.strip() for part in label.split(",")] for label in labels]
    keys = Counter(key for parts in names for key in {prompt_key(part) for part in parts})
    firsts = Counter(prompt_key(parts[0]) for parts in names)

    def chosen(first: str, *others: str) -> tuple[str, ...]:
        own = tuple(part for part in others if keys[prompt_key(part)] == 1)
        return (first, *own) if firsts[prompt_key(first)] == 1 or not own else own

    return [chosen(*parts) for parts in names]


def _entries(name: str) -> list[Entry]:
    if name not in _BUILDERS:
        close = get_close_matches(name, CLASS_LISTS)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise VocabularyError(
            f"no class list named {name!r}: {hint}the class lists are {', '.join(CLASS_LISTS)}"
        )
    return _BUILDERS[name]()


def _resource(name: str) -> dict[str, Any]:
    text = (files("densedet.vocabulary") / "resources" / f"{name}.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _coco_panoptic() -> list[Entry]:
    records = _resource("coco_panoptic")["categories"]
    return [(r["id"], Category(r["name"], kind=r["kind"])) for r in records]


def _coco() -> list[Entry]:
    return [entry for entry in _coco_panoptic() if entry[1].kind == "thing"]


def _coco_stuff_171() -> list[Entry]:
    """COCO's 80 things in its order, then the 91 kinds of stuff in that of the alphabet.

    The labels are COCO-Stuff's own ("wall-brick", "door-stuff") and the only prompts.
    """
    stuff = [Category(name, kind="stuff") for name in _resource("coco_stuff")["stuff"]]
    return list(enumerate([category for _, category in _coco()] + stuff))


def _ov_coco() -> list[Entry]:
    split = _resource("ov_coco")
    seen = {**dict.fromkeys(split["seen"], True), **dict.fromkeys(split["unseen"], False)}
    return [
        (identifier, replace(category, seen=seen[category.label]))
        for identifier, category in _coco()
        if category.label in seen
    ]


def _lvis_v1() -> list[Entry]:
    """Labels are the names of the annotation files, and the only prompts, as in ViLD and CLIPSelf.

    LVIS's own synonyms are left out: without their brackets several name more than one class
    ("bow", "cap", "fish"), and published OV-LVIS results prompt the name alone.
    """
    records = _resource("lvis_v1")["categories"]
    return [(r["id"], Category(r["name"], frequency=r["frequency"])) for r in records]


def _ov_lvis() -> list[Entry]:
    return [(i, replace(category, seen=category.frequency != "r")) for i, category in _lvis_v1()]


def _ade20k_labels() -> list[tuple[int, str]]:
    return [(r["id"], r["name"]) for r in _resource("ade20k_150")["categories"]]


def _ade20k_150() -> list[Entry]:
    """The names in a label ("road, route") are its synonyms, save those that another label has too.

    "ground", "counter", "screen", "pot" and "stool" occur twice; the first name of a label stays.
    All 150 are "stuff", as in Detectron2's registration for semantic segmentation.
    """
    labels = _ade20k_labels()
    prompts = unambiguous_names([label for _, label in labels])
    return [
        (i, Category(label, names, kind="stuff"))
        for (i, label), names in zip(labels, prompts, strict=True)
    ]


def _ade20k_150_denseclip() -> list[Entry]:
    overrides = _resource("ade20k_150_denseclip")["prompts"]

    def prompt(label: str) -> str:
        return overrides.get(label, label.split(",")[0])

    return [(i, Category(label, (prompt(label),), kind="stuff")) for i, label in _ade20k_labels()]


def _ade20k_panoptic() -> list[Entry]:
    """ADE20K-150 with the 100 classes that have instances as things.

    They are those of the instance segmentation of the Places challenge 2017, in its order: label
    i + 1 of its instance maps is the i-th thing here.
    """
    things = set(_resource("ade20k_things")["things"])
    return [
        (i, replace(category, kind="thing" if i in things else "stuff"))
        for i, category in _ade20k_150()
    ]


def _cityscapes_19() -> list[Entry]:
    records = _resource("cityscapes_19")["categories"]
    return [(r["id"], Category(r["name"], kind=r["kind"])) for r in records]


_VOC_PROMPTS = MappingProxyType(
    {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
)


def _voc_20() -> list[Entry]:
    """The prompts of the names that VOC writes as one word are two words, which is our choice."""
    names = [(r["id"], r["name"]) for r in _resource("voc_20")["categories"]]
    return [(i, Category(name, (_VOC_PROMPTS.get(name, name),))) for i, name in names]


def _shapes_world(unseen: Callable[[int, int], bool]) -> list[Entry]:
    """``unseen(colour, kind)`` says, from the two indices, whether a thing is unseen."""
    words = shapes_world_words()
    things = [
        Category(f"{colour} {kind}", seen=not unseen(c, k))
        for c, colour in enumerate(words.colours)
        for k, kind in enumerate(words.kinds)
    ]
    return list(enumerate(things + [Category(name, kind="stuff") for name in words.stuff], start=1))


def _shapes_world_kind() -> list[Entry]:
    words = shapes_world_words()
    return _shapes_world(lambda colour, kind: words.kinds[kind] in words.unseen_kinds)


def _shapes_world_pairs() -> list[Entry]:
    return _shapes_world(lambda colour, kind: (kind - 3 * colour) % 8 in (0, 1))


def _shapes_world_fold(number: int) -> list[Entry]:
    """The seen things of "shapes_world_kind"; two of their six kinds are held back as unseen."""
    words = shapes_world_words()
    kinds = [kind for kind in words.kinds if kind not in words.unseen_kinds]
    held_back = kinds[2 * number : 2 * number + 2]
    entries = _shapes_world(lambda colour, kind: words.kinds[kind] in held_back)
    return [entry for entry in entries if entry[1].label.split()[-1] not in words.unseen_kinds]


_BUILDERS: Mapping[str, Callable[[], list[Entry]]] = MappingProxyType(
    {
        "coco": _coco,
        "coco_panoptic": _coco_panoptic,
        "coco_stuff_171": _coco_stuff_171,
        "lvis_v1": _lvis_v1,
        "ov_coco": _ov_coco,
        "ov_lvis": _ov_lvis,
        "ade20k_150": _ade20k_150,
        "ade20k_150_denseclip": _ade20k_150_denseclip,
        "ade20k_panoptic": _ade20k_panoptic,
        "cityscapes_19": _cityscapes_19,
        "voc_20": _voc_20,
        "shapes_world": lambda: _shapes_world(lambda colour, kind: False),
        "shapes_world_kind": _shapes_world_kind,
        "shapes_world_pairs": _shapes_world_pairs,
        "shapes_world_fold0": lambda: _shapes_world_fold(0),
        "shapes_world_fold1": lambda: _shapes_world_fold(1),
        "shapes_world_fold2": lambda: _shapes_world_fold(2),
    }
)
CLASS_LISTS: tuple[str, ...] = tuple(_BUILDERS)
"""The names that :func:`load_class_list` knows."""
