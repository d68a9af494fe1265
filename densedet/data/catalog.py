"""Registering data sets in Detectron2's catalogs, by a call."""

import os
from dataclasses import dataclass
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from densedet.data.annotation_file import datasets_root, read_annotation_file, vocabulary_ids
from densedet.data.coco_format import coco_records
from densedet.data.panoptic_format import register_coco_panoptic_regions
from densedet.data.registration import is_registered
from densedet.data.semantic_benchmarks import register_coco_stuff10k
from densedet.data.semantic_format import register_ade20k
from densedet.vocabulary import Vocabulary

_COCO_HINT = (
    "COCO 2017 (https://cocodataset.org/#download): unpack annotations_trainval2017.zip, "
    "train2017.zip and val2017.zip so that there are <root>/coco/annotations/*.json, "
    "<root>/coco/train2017/*.jpg and <root>/coco/val2017/*.jpg, and set DETECTRON2_DATASETS=<root> "
    "(default: datasets)"
)
_LVIS_HINT = (
    "LVIS v1 (https://www.lvisdataset.org/dataset): unpack the annotations so that there are "
    "<root>/lvis/lvis_v1_train.json and <root>/lvis/lvis_v1_val.json; the images are COCO 2017's, "
    "in <root>/coco/train2017 and <root>/coco/val2017; set DETECTRON2_DATASETS=<root> (default: "
    "datasets)"
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
_BUILT_IN = (
    _BuiltIn(
        "ov_coco_train_seen",
        "coco/annotations/instances_train2017.json",
        "coco/train2017",
        "ov_coco",
        "coco",
        _COCO_HINT,
        {"seen_only": True, "drop_unlisted": True, "expected_annotated": 107_761},
    ),
    _BuiltIn(
        "ov_coco_val",
        "coco/annotations/instances_val2017.json",
        "coco/val2017",
        "ov_coco",
        "coco",
        _COCO_HINT,
        {"drop_unlisted": True, "annotated_only": True, "expected_annotated": 4_836},
    ),
    _BuiltIn(
        "ov_lvis_train_seen",
        "lvis/lvis_v1_train.json",
        "coco",
        "ov_lvis",
        "lvis",
        _LVIS_HINT,
        {"seen_only": True},
    ),
    _BuiltIn("ov_lvis_val", "lvis/lvis_v1_val.json", "coco", "ov_lvis", "lvis", _LVIS_HINT, {}),
)


def register_coco_format(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    evaluator_type: str = "coco",
    hint: str = "",
    **options: Any,
) -> None:
    """Register a COCO- or LVIS-format data set; its file is read when the data set is loaded.

    The metadata are ``thing_classes``, ``vocabulary``, ``json_file``, ``image_root``,
    ``evaluator_type``, ``annotated_only``, ``hint`` and ``registration`` (the arguments). Loading
    the data set adds ``thing_dataset_id_to_contiguous_id`` (category id of the file -> index in the
    vocabulary).

    Args:
        name: name in Detectron2's catalogs.
        json_file: annotation file.
        image_root: folder of the images.
        vocabulary: gives the class indices.
        evaluator_type: "coco" or "lvis".
        hint: added to the message if the annotation file is missing: where it comes from.
        **options: the other options of :func:`densedet.data.load_coco_format`.

    Raises:
        DatasetError: the name is taken by another data set. The same call twice is fine.
    """
    arguments: dict[str, Any] = {
        "json_file": os.fspath(json_file),
        "image_root": os.fspath(image_root),
        "vocabulary": vocabulary,
        "evaluator_type": evaluator_type,
        **options,
    }
    if is_registered(name, arguments):
        return

    def load() -> list[dict[str, Any]]:
        data = read_annotation_file(json_file, hint)
        ids = vocabulary_ids(data, json_file, vocabulary)
        MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id=ids)
        return coco_records(data, json_file, image_root, vocabulary, **options)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=list(vocabulary.labels),
        vocabulary=vocabulary,
        json_file=arguments["json_file"],
        image_root=arguments["image_root"],
        evaluator_type=evaluator_type,
        annotated_only=options.get("annotated_only", False),
        hint=hint,
        registration=arguments,
    )


def register_all(root: str | os.PathLike[str] | None = None) -> None:
    """Register OV-COCO, OV-LVIS, COCO panoptic, ADE20K and COCO-Stuff10k, in Detectron2's layout.

    Names: ``ov_coco_train_seen``, ``ov_coco_val``, ``ov_lvis_train_seen``, ``ov_lvis_val``,
    ``coco_panoptic_val``, ``ade20k_150_train``, ``ade20k_150_val``,
    ``coco_2017_train_stuff_10k_sem_seg``, ``coco_2017_test_stuff_10k_sem_seg``. The open-vocabulary
    splits are computed when a data set is loaded; the training sets hold the annotations of seen
    classes only, under the indices of the whole vocabulary (65 and 1,203 classes). No file is read
    here, so the data need not be there; ADE20K-Full, whose class names come with the data, has a
    call of its own: :func:`densedet.data.register_ade20k_full`.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets".

    Raises:
        DatasetError: one of the names is taken by another data set.
    """
    folder = datasets_root(root)
    for entry in _BUILT_IN:
        register_coco_format(
            entry.name,
            folder / entry.json_file,
            folder / entry.image_root,
            Vocabulary.named(entry.vocabulary),
            evaluator_type=entry.evaluator_type,
            hint=entry.hint,
            **entry.options,
        )
    register_coco_panoptic_regions(folder)
    register_ade20k(folder)
    register_coco_stuff10k(folder)
