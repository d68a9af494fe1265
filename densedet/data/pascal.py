"""PASCAL VOC 2012 segmentation (20 classes) and PASCAL-Context (59 and 459 classes)."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import MappingProxyType

from densedet.data.annotation_file import datasets_root
from densedet.data.conversion import (
    Conversion,
    LabelTable,
    label_conversion,
    label_sources,
    mat_sources,
)
from densedet.data.semantic_format import (
    IGNORED_16_BIT,
    IGNORED_LABEL,
    register_semantic_format,
)
from densedet.errors import DatasetError
from densedet.files import check_regular
from densedet.vocabulary import Category, Vocabulary, class_list_ids

PARTS = ("train", "val")
VOC_FOLDER, CONTEXT_FOLDER = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
NAMES_FILES = MappingProxyType(
    {59: f"{CONTEXT_FOLDER}/59_labels.txt", 459: f"{CONTEXT_FOLDER}/labels.txt"}
)
VOC_HINT = (
    "PASCAL VOC 2012 (http://host.robots.ox.ac.uk/pascal/VOC/voc2012): unpack "
    "VOCtrainval_11-May-2012.tar into <root> so that there are "
    f"<root>/{VOC_FOLDER}/JPEGImages/*.jpg, SegmentationClass/*.png and "
    "ImageSets/Segmentation/*.txt; then run tools/prepare_datasets.py voc_20, and "
    "set DETECTRON2_DATASETS=<root> (default: datasets)"
)
CONTEXT_HINT = (
    "PASCAL-Context (https://cs.stanford.edu/~roozbeh/pascal-context): unpack "
    "59_context_labels.tar.gz (59 classes) or trainval.tar.gz (459 classes) and put 59_labels.txt "
    f"or labels.txt beside, so that there are <root>/{CONTEXT_FOLDER}/59_context_labels/*.png and "
    f"59_labels.txt, or trainval/*.mat and labels.txt; the images are those of PASCAL VOC 2010 "
    "(http://host.robots.ox.ac.uk/pascal/VOC/voc2010), VOCtrainval_03-May-2010.tar unpacked into "
    "<root>, with JPEGImages/*.jpg, ImageSets/Main/train.txt and val.txt; then run "
    "tools/prepare_datasets.py context_59 or context_459, and set DETECTRON2_DATASETS=<root> "
    "(default: datasets)"
)


def register_voc_20(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``voc_20_{train,val}``: 1,464 and 1,449 images, 20 classes, background ignored.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets". Nothing is read here.

    Raises:
        DatasetError: the name is taken by another data set.
    """
    folder = datasets_root(root) / VOC_FOLDER
    for part in PARTS:
        register_semantic_format(
            f"voc_20_{part}",
            folder / "JPEGImages",
            folder / "annotations_detectron2" / part,
            Vocabulary.named("voc_20"),
            hint=VOC_HINT,
            names_file=folder / f"ImageSets/Segmentation/{part}.txt",
        )


def register_context(classes: int, root: str | os.PathLike[str] | None = None) -> None:
    """Register ``context_{classes}_{train,val}``: 4,998 and 5,105 images, background ignored.

    The split is that of PASCAL VOC 2010's detection task. The label maps of the 59 classes have 8
    bits, those of the 459 have 16 and 65535 for ignored pixels.

    Args:
        classes: 59 or 459.
        root: see :func:`register_voc_20`. The names of the classes are read here.

    Raises:
        DatasetError: as :func:`context_vocabulary`; the name is taken by another data set.
    """
    folder = datasets_root(root) / CONTEXT_FOLDER
    vocabulary = context_vocabulary(classes, root)
    for part in PARTS:
        register_semantic_format(
            f"context_{classes}_{part}",
            folder / "JPEGImages",
            folder / f"annotations_detectron2/pc{classes}_{part}",
            vocabulary,
            hint=CONTEXT_HINT,
            ignore_label=_ignored(classes),
            names_file=folder / f"ImageSets/Main/{part}.txt",
        )


def context_vocabulary(classes: int, root: str | os.PathLike[str] | None = None) -> Vocabulary:
    """The 59 or 459 classes, read from the official ``59_labels.txt`` or ``labels.txt``.

    The lines are "1: aeroplane"; the number is the label in the official maps. A name is the label
    as it is written there, and the prompt too, unless it is a class of PASCAL VOC: those have the
    prompts of the class list "voc_20" ("potted plant" for "pottedplant").

    Args:
        classes: 59 or 459.
        root: see :func:`register_voc_20`.

    Raises:
        DatasetError: the file is missing, or its lines do not number the classes from 1 on.
        VocabularyError: a name occurs twice.
    """
    path = datasets_root(root) / NAMES_FILES[classes]
    try:
        check_regular(path)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"list of classes {path} does not exist; {CONTEXT_HINT}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); fetch it again") from error
    found = re.findall(r"^\s*(\d+)\s*:\s*(\S.*?)\s*$", text, flags=re.MULTILINE)
    names = {int(number): name for number, name in found if int(number) > 0}
    if sorted(names) != list(range(1, classes + 1)):
        raise DatasetError(
            f"{path} has {len(names)} lines such as '1: aeroplane' instead of {classes}, numbered "
            "from 1 on; fetch it again"
        )
    prompts = {category.label: category.synonyms for category in Vocabulary.named("voc_20")}
    return Vocabulary(
        tuple(Category(names[n], prompts.get(names[n], ()), kind="stuff") for n in sorted(names))
    )


def voc_20_conversions(root: Path) -> Iterator[Conversion]:
    """The label maps: background and borders become 255, every other label one less."""
    folder = root / VOC_FOLDER
    yield from _png_conversions(
        "voc_20",
        LabelTable(class_list_ids("voc_20"), [0, IGNORED_LABEL]),
        folder / "annotations_detectron2",
        folder / "SegmentationClass",
        folder / "ImageSets/Segmentation",
        VOC_HINT,
    )


def context_59_conversions(root: Path) -> Iterator[Conversion]:
    """The label maps: 0 becomes 255, every other label one less."""
    folder = root / CONTEXT_FOLDER
    yield from _png_conversions(
        "context_59",
        LabelTable(range(1, 60), [0]),
        folder / "annotations_detectron2",
        folder / "59_context_labels",
        folder / "ImageSets/Main",
        CONTEXT_HINT,
        "pc59_",
    )


def context_459_conversions(root: Path) -> Iterator[Conversion]:
    """The label maps of 16 bits: 0 becomes 65535, every other label one less."""
    folder = root / CONTEXT_FOLDER
    lists = folder / "ImageSets/Main"
    table = LabelTable(range(1, 460), [0], IGNORED_16_BIT)

    for part in PARTS:
        yield label_conversion(
            folder / f"annotations_detectron2/pc459_{part}",
            partial(mat_sources, folder / "trainval", lists / f"{part}.txt", CONTEXT_HINT),
            partial(table.of_matrix, variable="LabelMap"),
            f"context_459_{part}",
        )


def _ignored(classes: int) -> int:
    return IGNORED_LABEL if classes < IGNORED_LABEL else IGNORED_16_BIT


def _png_conversions(
    name: str,
    table: LabelTable,
    target: Path,
    labels: Path,
    lists: Path,
    hint: str,
    prefix: str = "",
) -> Iterator[Conversion]:
    """Of label maps in 8-bit PNG; the images lie in JPEGImages beside ``labels``."""
    for part in PARTS:
        images = labels.parent / "JPEGImages"
        sources = partial(label_sources, images, labels, hint, lists / f"{part}.txt")
        yield label_conversion(
            target / f"{prefix}{part}", sources, table.of_image, f"{name}_{part}"
        )
