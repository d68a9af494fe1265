"""Shapes World in Detectron2's catalogs; :mod:`densedet.data.shapes_world_writer` writes it."""

import os
from collections.abc import Iterator
from pathlib import Path

from densedet.data.catalog import register_coco_format
from densedet.data.panoptic_format import register_panoptic_format
from densedet.data.semantic_format import register_semantic_format
from densedet.data.shapes_world_writer import FOLDER, VOCABULARY
from densedet.vocabulary import Vocabulary

SPLITS = ("kind", "pairs", "fold0", "fold1", "fold2")


def register_shapes_world(root: str | os.PathLike[str] = "datasets") -> None:
    """Register Shapes World below ``root`` in Detectron2's catalogs; nothing is read here.

    For each seen/unseen split S of "kind" and "pairs", over the 64 things, and "fold0" to "fold2",
    over the 48 seen things of "kind" of which 16 are held back (for choosing settings without the
    unseen things of "kind", whose annotations are left out):
    ``shapes_world_S_train_seen`` (annotations of seen classes only; the unseen things stay in the
    pictures), ``shapes_world_S_train`` and ``shapes_world_S_val`` (all annotations). Over things
    and stuff: ``shapes_world_panoptic_{train,val}`` and ``shapes_world_semantic_{train,val}``; and
    with the seen flags of "kind" or "pairs" ``shapes_world_panoptic_S_{train,val}``, all annotated:
    :class:`densedet.data.PanopticMapper` leaves the unseen out in training. Over the six stuff
    classes, things ignored: ``shapes_world_stuff_{train,val}``.
    """
    folder = Path(root) / FOLDER
    hint = f"make it with: python tools/prepare_shapes_world.py --root {Path(root)}"
    for split in SPLITS:
        things = Vocabulary.named(f"shapes_world_{split}").of_kind("thing")
        for name, part, seen_only in _detection_sets(split):
            register_coco_format(
                name,
                folder / "annotations" / f"instances_{part}.json",
                folder / part,
                things,
                hint=hint,
                seen_only=seen_only,
                drop_unlisted=split.startswith("fold"),
            )
    world = Vocabulary.named(VOCABULARY)
    for part in ("train", "val"):
        for split in ("", "_kind", "_pairs"):
            register_panoptic_format(
                f"shapes_world_panoptic{split}_{part}",
                folder / "annotations" / f"panoptic_{part}.json",
                folder / part,
                folder / f"panoptic_{part}",
                Vocabulary.named(f"{VOCABULARY}{split}"),
                hint=hint,
            )
        for kind, vocabulary in (("semantic", world), ("stuff", world.of_kind("stuff"))):
            register_semantic_format(
                f"shapes_world_{kind}_{part}",
                folder / part,
                folder / f"{kind}_{part}",
                vocabulary,
                hint=hint,
            )


def _detection_sets(split: str) -> Iterator[tuple[str, str, bool]]:
    yield f"shapes_world_{split}_train_seen", "train", True
    yield f"shapes_world_{split}_train", "train", False
    yield f"shapes_world_{split}_val", "val", False
