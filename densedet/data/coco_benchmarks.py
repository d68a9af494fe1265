"""COCO panoptic and COCO-Stuff 164k."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from densedet.data.annotation_file import datasets_root
from densedet.data.conversion import Conversion, LabelTable, label_conversion, label_sources
from densedet.data.panoptic_format import register_panoptic_format
from densedet.data.semantic_format import IGNORED_LABEL, register_semantic_format
from densedet.vocabulary import Vocabulary, class_list_ids

PARTS = ("train", "val")
PANOPTIC_HINT = (
    "COCO 2017 (https://cocodataset.org/#download): unpack panoptic_annotations_trainval2017.zip, "
    "the panoptic_train2017.zip and panoptic_val2017.zip inside it, train2017.zip and val2017.zip "
    "so that there are <root>/coco/annotations/panoptic_train2017.json, panoptic_val2017.json, "
    "<root>/coco/panoptic_val2017/*.png and <root>/coco/val2017/*.jpg, and set "
    "DETECTRON2_DATASETS=<root> (default: datasets)"
)
STUFF_HINT = (
    "COCO-Stuff 164k (https://github.com/nightrome/cocostuff): unpack "
    "stuffthingmaps_trainval2017.zip into <root>/coco/stuffthingmaps, so that there is "
    "<root>/coco/stuffthingmaps/val2017/*.png, and COCO's train2017.zip and val2017.zip "
    "(https://cocodataset.org/#download) into <root>/coco; set DETECTRON2_DATASETS=<root> "
    "(default: datasets)"
)
_STUFF_LABELS = (
    "run tools/prepare_datasets.py coco_stuff_164k, which numbers the classes anew and writes "
    "<root>/coco/stuffthingmaps_detectron2"
)


def register_coco_panoptic(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``coco_panoptic_{train,val}``: 118,287 and 5,000 images, 133 categories.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets". Nothing is read here.

    Raises:
        DatasetError: the name is taken by another data set.
    """
    folder = datasets_root(root) / "coco"
    for part in PARTS:
        register_panoptic_format(
            f"coco_panoptic_{part}",
            folder / f"annotations/panoptic_{part}2017.json",
            folder / f"{part}2017",
            folder / f"panoptic_{part}2017",
            Vocabulary.named("coco_panoptic"),
            hint=PANOPTIC_HINT,
        )


def register_coco_stuff_164k(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``coco_stuff_164k_{train,val}``: 118,287 and 5,000 images, 171 classes.

    The label maps are those that ``tools/prepare_datasets.py`` writes, in
    ``coco/stuffthingmaps_detectron2/{train2017,val2017}``.

    Args:
        root: see :func:`register_coco_panoptic`.

    Raises:
        DatasetError: the name is taken by another data set. On loading: as
            :func:`densedet.data.load_semantic_format`.
    """
    folder = datasets_root(root) / "coco"
    for part in PARTS:
        register_semantic_format(
            f"coco_stuff_164k_{part}",
            folder / f"{part}2017",
            folder / f"stuffthingmaps_detectron2/{part}2017",
            Vocabulary.named("coco_stuff_171"),
            hint=STUFF_HINT,
            label_hint=_STUFF_LABELS,
        )


def coco_stuff_164k_conversions(root: Path) -> Iterator[Conversion]:
    """The label maps; a label of the official ones is the category's id less one."""
    things = [identifier - 1 for identifier in class_list_ids("coco")]
    table = LabelTable([*things, *range(91, 182)], [IGNORED_LABEL])

    for part in PARTS:
        images = root / f"coco/{part}2017"
        labels = root / f"coco/stuffthingmaps/{part}2017"
        yield label_conversion(
            root / f"coco/stuffthingmaps_detectron2/{part}2017",
            partial(label_sources, images, labels, STUFF_HINT),
            table.of_image,
            f"coco_stuff_164k_{part}",
        )
