"""COCO-Stuff10k, and ADE20K-Full in the layout that MaskFormer's preparation script writes."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from densedet.data.annotation_file import datasets_root
from densedet.data.conversion import Conversion, LabelTable, label_conversion, mat_sources
from densedet.data.semantic_format import IGNORED_16_BIT, register_semantic_format
from densedet.errors import DatasetError
from densedet.files import check_regular
from densedet.vocabulary import Category, Vocabulary
from densedet.vocabulary.class_lists import unambiguous_names

ADE20K_FULL_IGNORED = IGNORED_16_BIT
_ADE20K_FULL_CLASSES = 847
COCO_STUFF, COCO_STUFF_PARTS = "coco/coco_stuff_10k", ("train", "test")
ADE20K_FULL = "ADE20K_2021_17_01"
COCO_STUFF_HINT = (
    "COCO-Stuff10k (https://github.com/nightrome/cocostuff10k): unpack cocostuff-10k-v1.0.zip so "
    f"that there are the folders annotations, imageLists and images in <root>/{COCO_STUFF}; then "
    "run tools/prepare_datasets.py coco_stuff_10k, and set DETECTRON2_DATASETS=<root> (default: "
    "datasets)"
)
_CATEGORIES_HINT = (
    "densedet does not ship the names of the 847 classes; write them as JSON, a list of objects "
    "with 'name' and 'trainId' (the class's number in the label maps), from where the label maps "
    "were made: ADE20K_SEM_SEG_FULL_CATEGORIES in MaskFormer's "
    "datasets/prepare_ade20k_full_sem_seg.py is such a list"
)
ADE20K_FULL_HINT = (
    "ADE20K-Full (https://groups.csail.mit.edu/vision/datasets/ADE20K/): unpack it so that there "
    f"is <root>/{ADE20K_FULL}/index_ade20k.pkl, run MaskFormer's "
    "datasets/prepare_ade20k_full_sem_seg.py, which writes images_detectron2 and "
    "annotations_detectron2, and set DETECTRON2_DATASETS=<root> (default: datasets); the names are "
    f"read from <root>/{ADE20K_FULL}/categories.json: {_CATEGORIES_HINT}"
)


def register_coco_stuff10k(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``coco_2017_{train,test}_stuff_10k_sem_seg``: 9,000 and 1,000 images, 171 classes.

    Annotations of version 1.0; the names are MaskFormer's. The label maps are 8-bit PNG in
    ``coco/coco_stuff_10k/annotations_detectron2/{train,test}``, as ``tools/prepare_datasets.py``
    or MaskFormer's script writes them. Version 1.1 numbers its classes otherwise.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets". Nothing is read here.

    Raises:
        DatasetError: one of the names is taken by another data set. On loading: as
            :func:`densedet.data.load_semantic_format`.
    """
    folder = datasets_root(root) / COCO_STUFF
    for part in COCO_STUFF_PARTS:
        register_semantic_format(
            f"coco_2017_{part}_stuff_10k_sem_seg",
            folder / "images",
            folder / "annotations_detectron2" / part,
            Vocabulary.named("coco_stuff_171"),
            hint=COCO_STUFF_HINT,
            names_file=folder / f"imageLists/{part}.txt",
        )


def coco_stuff10k_conversions(root: Path) -> Iterator[Conversion]:
    """The label maps: label 1 of the official ones becomes 255, every other label two less."""
    folder = root / COCO_STUFF
    table = LabelTable(range(2, 173), [1])

    for part in COCO_STUFF_PARTS:
        names = folder / f"imageLists/{part}.txt"
        yield label_conversion(
            folder / f"annotations_detectron2/{part}",
            partial(mat_sources, folder / "annotations", names, COCO_STUFF_HINT),
            partial(table.of_matrix, variable="S"),
            f"coco_2017_{part}_stuff_10k_sem_seg",
        )


def register_ade20k_full(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``ade20k_full_sem_seg_{train,val}``, 847 classes; the names are MaskFormer's.

    The label maps are 16-bit TIFF with 65535 for ignored pixels, in
    ``ADE20K_2021_17_01/annotations_detectron2/{training,validation}``, the images in
    ``images_detectron2/{training,validation}`` beside it.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets". The names of the classes are read here.

    Raises:
        DatasetError: as :func:`ade20k_full_vocabulary`; one of the names is taken by another data
            set. On loading: as :func:`densedet.data.load_semantic_format`.
    """
    folder = datasets_root(root) / ADE20K_FULL
    vocabulary = ade20k_full_vocabulary(root)
    for part, subfolder in (("train", "training"), ("val", "validation")):
        register_semantic_format(
            f"ade20k_full_sem_seg_{part}",
            folder / "images_detectron2" / subfolder,
            folder / "annotations_detectron2" / subfolder,
            vocabulary,
            hint=ADE20K_FULL_HINT,
            ignore_label=ADE20K_FULL_IGNORED,
        )


def ade20k_full_vocabulary(root: str | os.PathLike[str] | None = None) -> Vocabulary:
    """The 847 classes, read from ``ADE20K_2021_17_01/categories.json`` below ``root``.

    The file is a list of objects with "name" ("screen, crt screen") and "trainId" (0 to 846, the
    number in the label maps). A name is the label; its only prompt is the first of its parts that
    means this class alone, as far as there is one ("crt screen"), which is our choice.

    Args:
        root: see :func:`register_ade20k_full`.

    Raises:
        DatasetError: the file is missing or not such a list.
        VocabularyError: two classes have the same name.
    """
    path = datasets_root(root) / ADE20K_FULL / "categories.json"
    labels = _full_labels(path)
    prompts = unambiguous_names(labels)
    return Vocabulary(
        tuple(
            Category(label, names[:1], kind="stuff")
            for label, names in zip(labels, prompts, strict=True)
        )
    )


def _full_labels(path: Path) -> list[str]:
    """The names in the order of their numbers."""
    names: dict[int, str] = {}
    for record in _read_list(path):
        fields: dict[str, Any] = record if isinstance(record, dict) else {}
        number, name = fields.get("trainId", -1), fields.get("name")
        if number not in range(_ADE20K_FULL_CLASSES) or number in names or not name:
            raise DatasetError(
                f"{path}: {record!r} has no 'name', or its 'trainId' is not from 0 to 846 or used "
                "twice; correct the record"
            )
        names[number] = str(name)
    if len(names) < _ADE20K_FULL_CLASSES:
        missing = min(set(range(_ADE20K_FULL_CLASSES)) - set(names))
        raise DatasetError(
            f"{path} has {len(names)} of 847 classes, none with the 'trainId' {missing}; add those "
            "that are missing"
        )
    return [names[number] for number in sorted(names)]


def _read_list(path: Path) -> list[Any]:
    try:
        check_regular(path)
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; {_CATEGORIES_HINT}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({error}); write it again") from error
    if not isinstance(data, list):
        raise DatasetError(f"{path} holds no list; {_CATEGORIES_HINT}")
    return data
