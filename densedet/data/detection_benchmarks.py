"""OV-COCO, OV-LVIS and Objects365 v1: detection benchmarks from official annotation files."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densedet.data.annotation_file import category_names, datasets_root, read_annotation_file
from densedet.data.catalog import register_coco_format
from densedet.data.conversion import Conversion, Sources
from densedet.errors import DatasetError
from densedet.files import write_text
from densedet.vocabulary import Vocabulary

COCO_HINT = (
    "COCO 2017 (https://cocodataset.org/#download): unpack annotations_trainval2017.zip, "
    "train2017.zip and val2017.zip so that there are "
    "<root>/coco/annotations/instances_train2017.json, "
    "<root>/coco/annotations/instances_val2017.json, <root>/coco/train2017/*.jpg and "
    "<root>/coco/val2017/*.jpg, and set DETECTRON2_DATASETS=<root> (default: datasets)"
)
LVIS_HINT = (
    "LVIS v1 (https://www.lvisdataset.org/dataset): unpack the annotations so that there are "
    "<root>/lvis/lvis_v1_train.json and <root>/lvis/lvis_v1_val.json; the images are COCO 2017's, "
    "in <root>/coco/train2017 and <root>/coco/val2017; set DETECTRON2_DATASETS=<root> (default: "
    "datasets)"
)
OBJECTS365 = "objects365v1"
OBJECTS365_HINT = (
    "Objects365 version 1 (https://www.objects365.org): unpack it so that there are "
    f"<root>/{OBJECTS365}/objects365_train.json, objects365_val.json and the folders train and val "
    "of the images; then run tools/prepare_datasets.py objects365, and set "
    "DETECTRON2_DATASETS=<root> (default: datasets)"
)


@dataclass(frozen=True)
class _BuiltIn:
    """A benchmark made from an official annotation file, paths below the root."""

    name: str
    json_file: str
    image_root: str
    vocabulary: str
    evaluator_type: str
    hint: str
    options: dict[str, Any]


# OV-COCO: the 48/17 split of Bansal et al. (arXiv 1804.04340) in the form of OVR-CNN (arXiv
# 2011.10678): 107,761 training images have seen annotations; the 4,836 validation images with an
# annotation of the 65 classes are tested. OV-LVIS (ViLD, arXiv 2104.13921): the rare are unseen.
# COCO itself: 1,021 training and 48 validation images have no annotation, and all are tested.
_BUILT_IN = (
    _BuiltIn(
        "coco_train",
        "coco/annotations/instances_train2017.json",
        "coco/train2017",
        "coco",
        "coco",
        COCO_HINT,
        {"expected_annotated": 117_266},
    ),
    _BuiltIn(
        "coco_val",
        "coco/annotations/instances_val2017.json",
        "coco/val2017",
        "coco",
        "coco",
        COCO_HINT,
        {"expected_annotated": 4_952},
    ),
    _BuiltIn(
        "ov_coco_train_seen",
        "coco/annotations/instances_train2017.json",
        "coco/train2017",
        "ov_coco",
        "coco",
        COCO_HINT,
        {"seen_only": True, "drop_unlisted": True, "expected_annotated": 107_761},
    ),
    _BuiltIn(
        "ov_coco_val",
        "coco/annotations/instances_val2017.json",
        "coco/val2017",
        "ov_coco",
        "coco",
        COCO_HINT,
        {"drop_unlisted": True, "annotated_only": True, "expected_annotated": 4_836},
    ),
    _BuiltIn(
        "ov_lvis_train_seen",
        "lvis/lvis_v1_train.json",
        "coco",
        "ov_lvis",
        "lvis",
        LVIS_HINT,
        {"seen_only": True},
    ),
    _BuiltIn("ov_lvis_val", "lvis/lvis_v1_val.json", "coco", "ov_lvis", "lvis", LVIS_HINT, {}),
)


def register_open_vocabulary(prefix: str, root: str | os.PathLike[str] | None = None) -> None:
    """Register ``{prefix}_train_seen`` and ``{prefix}_val``.

    The training sets hold the annotations of seen classes only, under the indices of the whole
    vocabulary (65 and 1,203 classes).

    Args:
        prefix: "ov_coco" or "ov_lvis".
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets". Nothing is read here.

    Raises:
        DatasetError: one of the names is taken by another data set.
    """
    _register(prefix, root)


def register_coco_detection(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``coco_{train,val}``: 118,287 and 5,000 images, 80 classes by their ids.

    They are the files of Detectron2's ``coco_2017_{train,val}``, with the same class indices.

    Args:
        root: see :func:`register_open_vocabulary`.

    Raises:
        DatasetError: one of the names is taken by another data set.
    """
    _register("coco", root)


def _register(vocabulary: str, root: str | os.PathLike[str] | None) -> None:
    folder = datasets_root(root)
    for entry in _BUILT_IN:
        if entry.vocabulary == vocabulary:
            register_coco_format(
                entry.name,
                folder / entry.json_file,
                folder / entry.image_root,
                Vocabulary.named(entry.vocabulary),
                evaluator_type=entry.evaluator_type,
                hint=entry.hint,
                **entry.options,
            )


def register_objects365(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``objects365_{train,val}``, version 1: 608,606 and 30,000 images, 365 classes.

    The names of the classes are read from ``objects365v1/categories.json``, which
    ``tools/prepare_datasets.py objects365`` takes out of the annotation file.

    Args:
        root: see :func:`register_open_vocabulary`.

    Raises:
        DatasetError: the file of the names is missing or not such a file; the name is taken by
            another data set.
    """
    folder = datasets_root(root) / OBJECTS365
    path = folder / "categories.json"
    data = read_annotation_file(path, OBJECTS365_HINT)
    vocabulary = Vocabulary.from_coco(data)
    for part in ("train", "val"):
        register_coco_format(
            f"objects365_{part}",
            folder / f"objects365_{part}.json",
            folder / part,
            vocabulary,
            hint=OBJECTS365_HINT,
        )


def objects365_conversions(root: Path) -> Iterator[Conversion]:
    """The names of the 365 classes, from the validation file."""
    target = root / OBJECTS365 / "categories.json"
    source = root / OBJECTS365 / "objects365_val.json"

    def write(found: Sources) -> None:
        names = category_names(read_annotation_file(source, OBJECTS365_HINT), source)
        if len(names) != 365:
            raise DatasetError(
                f"annotation file {source} has {len(names)} categories instead of 365; version 2 "
                "has another file: unpack that of version 1"
            )
        entries = [{"id": i, "name": names[i]} for i in sorted(names)]
        content = {"images": [], "annotations": [], "categories": entries}
        write_text(target, json.dumps(content))

    yield Conversion((target,), lambda: {source.stem: source}, write)
