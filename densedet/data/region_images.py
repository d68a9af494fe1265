"""Registering images with region boxes: what CLIPSelf (arXiv 2310.01403) is trained on."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from densedet.data.annotation_file import datasets_root
from densedet.data.annotation_table import AnnotationTable
from densedet.data.annotation_values import Faults
from densedet.data.catalog import table_vocabulary
from densedet.data.coco_format import image_paths
from densedet.data.proposal_file import Proposals, read_proposal_file
from densedet.data.record_list import RecordColumns, image_records
from densedet.data.table_cache import annotation_table
from densedet.errors import ConfigError, DatasetError, VocabularyError
from densedet.vocabulary import Vocabulary

__all__ = [
    "Proposals",
    "read_proposal_file",
    "region_vocabulary",
    "register_clipself",
    "register_region_images",
]

logger = logging.getLogger(__name__)

_IMAGES = (
    "images: train2017.zip of https://cocodataset.org/#download, unpacked to "
    "<root>/coco/train2017; set DETECTRON2_DATASETS=<root> (default: datasets)"
)
_COCO_HINT = (
    "take it from annotations_trainval2017.zip of https://cocodataset.org/#download and put it "
    f"into <root>/coco/annotations; {_IMAGES}"
)
_LVIS_HINT = (
    "take LVIS v1 from https://www.lvisdataset.org/dataset and put it into <root>/lvis; " + _IMAGES
)
_PROPOSALS_HINT = (
    "it is the proposals of a detector trained on the base classes, published with CLIPSelf "
    "(https://github.com/wusize/CLIPSelf): put it, or proposals of your own in COCO's format, into "
    f"<root>/coco/annotations; {_IMAGES}"
)
_LABELS_HINT = (
    "it holds boxes labelled with 4,764 nouns; make it with tools/make_region_labels.py and put it "
    f"into <root>/coco/annotations; {_IMAGES}"
)


def register_region_images(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    hint: str = "",
    proposal_file: str | os.PathLike[str] | None = None,
    annotated_only: bool = False,
) -> None:
    """Register the images of a COCO- or LVIS-format file with the boxes of their annotations.

    The files are read when the data set is loaded. A record has "file_name" (without one in the
    file, as in LVIS, the last two components of ``coco_url``), "height", "width", "image_id" and
    "annotations", each "bbox" in XYWH_ABS pixels as in the file, "bbox_mode", "category_id" (the
    rank of the category's id) and "iscrowd"; masks are left out. Loading sets the metadata
    ``thing_classes`` and ``thing_dataset_id_to_contiguous_id``; ``json_file``, ``image_root`` and
    ``hint`` are always there.

    Args:
        name: name in Detectron2's catalogs.
        json_file: the annotation file.
        image_root: folder of the images.
        hint: added to the message if the annotation file is missing: where it comes from.
        proposal_file: gives "proposal_boxes", "proposal_bbox_mode" and, if it has scores,
            "proposal_objectness_logits"; see :func:`read_proposal_file`. An image that it does not
            have gets no boxes.
        annotated_only: leave out the images without an annotation that is not a crowd.

    Raises:
        DatasetError: the name is taken by another data set. The same call twice is fine. On
            loading: a file is missing or damaged, or a record is wrong; the message names them.
    """
    arguments = {
        "json_file": os.fspath(json_file),
        "image_root": os.fspath(image_root),
        "proposal_file": None if proposal_file is None else os.fspath(proposal_file),
        "annotated_only": annotated_only,
    }
    if name in DatasetCatalog:
        if MetadataCatalog.get(name).get("registration") != arguments:
            raise DatasetError(
                f"data set {name!r} is already registered, but not with {arguments}; choose "
                "another name, or remove it first with DatasetCatalog.remove and "
                "MetadataCatalog.remove"
            )
        return

    def load() -> list[dict[str, Any]]:
        table = annotation_table(json_file, hint)
        indices = {identifier: rank for rank, identifier in enumerate(sorted(table.names))}
        MetadataCatalog.get(name).set(
            thing_classes=[table.names[identifier] for identifier in indices],
            thing_dataset_id_to_contiguous_id=indices,
        )
        records = _records(table, indices, image_root, annotated_only)
        if proposal_file is not None:
            _add_proposals(records, read_proposal_file(proposal_file), proposal_file)
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=arguments["json_file"],
        image_root=arguments["image_root"],
        hint=hint,
        registration=arguments,
    )


def region_vocabulary(name: str) -> Vocabulary:
    """The categories of a registered data set, read from its annotation file.

    Args:
        name: of :func:`register_region_images` or :func:`register_clipself`.

    Returns:
        The vocabulary that the "category_id" of its records are indices into.

    Raises:
        ConfigError: there is no such data set, or it has no annotation file.
        DatasetError: the file is missing, or its categories are wrong; the message names it.
    """
    metadata = MetadataCatalog.get(name) if name in DatasetCatalog else None
    path = None if metadata is None else metadata.get("json_file")
    if metadata is None or path is None:
        raise ConfigError(
            f"no data set {name!r} with an annotation file is registered; register it in "
            "dataloader.register, e.g. with densedet.data.register_clipself"
        )
    table = annotation_table(path, metadata.get("hint", ""))
    try:
        return table_vocabulary(table)
    except VocabularyError as error:
        raise DatasetError(f"annotation file {path}: {error}") from error


def register_clipself(root: str | os.PathLike[str] | None = None) -> None:
    """Register the training sets of CLIPSelf's released models, in Detectron2's folder layout.

    ``clipself_coco_train`` and ``clipself_lvis_train``: all images, for grid patches.
    ``clipself_coco_proposals``: region proposals as annotations. ``clipself_coco_regionclip``:
    boxes with labels for the RegionCLIP baseline, which uses the images with boxes only. No file is
    read here, so the data need not be there.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets".

    Raises:
        DatasetError: one of the names is taken by another data set.
    """
    folder = datasets_root(root)
    coco = folder / "coco"
    for name, file, images, hint in (
        (
            "clipself_coco_train",
            coco / "annotations/instances_train2017.json",
            coco / "train2017",
            _COCO_HINT,
        ),
        ("clipself_lvis_train", folder / "lvis/lvis_v1_train.json", coco, _LVIS_HINT),
        (
            "clipself_coco_proposals",
            coco / "annotations/coco_proposals.json",
            coco / "train2017",
            _PROPOSALS_HINT,
        ),
        (
            "clipself_coco_regionclip",
            coco / "annotations/coco_pseudo_4764.json",
            coco / "train2017",
            _LABELS_HINT,
        ),
    ):
        annotated_only = name == "clipself_coco_regionclip"
        register_region_images(name, file, images, hint, annotated_only=annotated_only)


def _records(
    table: AnnotationTable,
    indices: dict[int, int],
    root: str | os.PathLike[str],
    annotated_only: bool,
) -> list[dict[str, Any]]:
    """The dicts of the images, by ascending image id; boxes are taken as they are."""
    found = Faults(f"annotation file {table.path}")
    if not len(table.sizes):
        found.add("its list 'images'", "is empty; give a file with images")
    for row in np.flatnonzero((table.boxes[:, 2:] < 0).any(axis=1)).tolist():
        found.add(
            table.annotation_name(row),
            f"has box {table.box_text(row)}; give four finite numbers x, y, width, height, "
            "the last two not negative",
        )
    found.check()
    classes = np.array([indices[i] for i in table.names], dtype=np.int64)[table.labels]
    rows = np.argsort(table.images, kind="stable")
    columns = RecordColumns(table, table.boxes, classes, rows, masks=False)
    records = image_records(columns, image_paths(table, root))
    annotated = np.bincount(table.images[~table.crowds], minlength=len(records)) > 0
    logger.info("%s: %d images, %d with boxes", table.path, len(records), annotated.sum())
    kept = np.flatnonzero(annotated) if annotated_only else range(len(records))
    return sorted((records[i] for i in kept), key=lambda record: record["image_id"])


def _add_proposals(
    records: list[dict[str, Any]],
    proposals: Mapping[str, Proposals],
    path: str | os.PathLike[str],
) -> None:
    """Put Detectron2's keys for proposals into the records."""
    nothing = Proposals(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    missing = sum(str(record["image_id"]) not in proposals for record in records)
    if missing == len(records):
        raise DatasetError(
            f"proposal file {path} has none of the {len(records)} images of the annotation file; "
            "give the proposals of this data set"
        )
    if missing:
        logger.warning("%s: no proposals for %d of %d images", path, missing, len(records))
    for record in records:
        found = proposals.get(str(record["image_id"]), nothing)
        record["proposal_boxes"] = found.boxes
        record["proposal_bbox_mode"] = BoxMode.XYXY_ABS
        if found.scores is not None:
            record["proposal_objectness_logits"] = found.scores
