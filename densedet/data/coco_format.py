"""Reading annotation files in COCO's format, with checks that name the faulty record.

Format: https://cocodataset.org/#format-data; LVIS (arXiv 1908.03195) adds ``coco_url`` and the
lists of negative and not exhaustively annotated categories.
"""

import difflib
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densedet.data import annotation_table as kinds
from densedet.data.annotation_file import named_ids
from densedet.data.annotation_table import AnnotationTable
from densedet.data.annotation_values import Faults
from densedet.data.record_list import RecordColumns, image_records
from densedet.data.suspicions import warn_of_placeholders
from densedet.data.table_cache import annotation_table
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_LVIS_V05, _LVIS_V1 = 1230, 1203  # categories


def load_coco_format(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    seen_only: bool = False,
    drop_unlisted: bool = False,
    annotated_only: bool = False,
    box_tolerance: float = 1.0,
    expected_annotated: int | None = None,
    hint: str = "",
) -> list[dict[str, Any]]:
    """Read a COCO- or LVIS-format instance file into Detectron2's standard dataset dicts.

    Categories are matched with the vocabulary by name, exactly; their ids and order do not matter.
    What a file may say in several ways is in :func:`densedet.data.annotation_reader.read_table`.
    Boxes that reach over the border by at most ``box_tolerance`` pixels (COCO's own do, by
    rounding) are clipped; boxes without area (COCO has a few) are skipped, and their number is
    logged. An instance whose polygons all have fewer than three points keeps its box, with an empty
    list as its "segmentation". Nothing is read from the images.

    Args:
        json_file: the annotation file.
        image_root: folder that the file names are relative to. An image without ``file_name``
            (LVIS) is found by the last two components of its ``coco_url``.
        vocabulary: gives ``category_id``, the index of the category.
        seen_only: drop the annotations of categories that are not ``seen``; the images stay.
        drop_unlisted: drop the annotations of categories that are not in the vocabulary, instead of
            raising.
        annotated_only: drop the images that have no annotation (crowds count) after that.
        box_tolerance: pixels by which a box may reach over the border.
        expected_annotated: known number of images with annotations; another number is logged as a
            warning.
        hint: added to the message if the file is missing: where it comes from.

    Returns:
        One dict an image, by ascending image id: "file_name", "height", "width", "image_id",
        "annotations" (each "bbox" in XYWH_ABS pixels, "bbox_mode", "category_id", "iscrowd" and, if
        there is one, "segmentation": polygons or compressed RLE), and LVIS's two lists. The
        annotations are a read-only sequence, which makes them from arrays when they are looked at;
        ``copy.deepcopy`` of a record has them as a list.

    Raises:
        DatasetError: the file is missing, is no JSON or lacks keys; an annotation belongs to an
            unknown image or category, its box is not finite or lies outside the image, or its mask
            does not fit the image; ids occur twice. The message names the file, the first ten
            faulty records and their number.
    """
    return coco_records(
        annotation_table(json_file, hint),
        image_root,
        vocabulary,
        seen_only=seen_only,
        drop_unlisted=drop_unlisted,
        annotated_only=annotated_only,
        box_tolerance=box_tolerance,
        expected_annotated=expected_annotated,
    )


def coco_records(
    table: AnnotationTable,
    image_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    seen_only: bool = False,
    drop_unlisted: bool = False,
    annotated_only: bool = False,
    box_tolerance: float = 1.0,
    expected_annotated: int | None = None,
) -> list[dict[str, Any]]:
    """What :func:`load_coco_format` makes of a file that was read already.

    See there for the arguments, the result and the errors.
    """
    classes = _classes(table, vocabulary, drop_unlisted)
    chosen: NDArray[np.bool_] = classes >= 0
    if seen_only:
        chosen &= np.array([c.seen for c in vocabulary], dtype=np.bool_)[classes]
    boxes = _clipped(table, box_tolerance, np.flatnonzero(chosen))
    has_area: NDArray[np.bool_] = np.all((boxes[:, 2:] > 0) & (table.boxes[:, 2:] > 0), axis=1)
    annotated = np.bincount(table.images[chosen], minlength=len(table.sizes)) > 0
    _report(table, chosen, has_area, int(annotated.sum()), expected_annotated)
    rows = np.flatnonzero(chosen & has_area)
    rows = rows[np.argsort(table.images[rows], kind="stable")]
    columns = RecordColumns(table, boxes, classes, rows)
    records = image_records(columns, image_paths(table, image_root), lists=True)
    kept = np.flatnonzero(annotated) if annotated_only else range(len(records))
    return sorted((records[i] for i in kept), key=lambda record: record["image_id"])


def _classes(table: AnnotationTable, vocabulary: Vocabulary, drop_unlisted: bool) -> NDArray[Any]:
    """``[N]``: the index of each annotation's category in the vocabulary, -1 of one to be dropped.

    Raises:
        DatasetError: an annotation has no id, or has a category that is neither listed nor dropped.
    """
    found = Faults(f"annotation file {table.path}")
    found.extend(*table.id_faults)
    indices = named_ids(table.names, vocabulary)
    of_category = np.array([indices.get(i, -1) for i in table.names] + [-1], dtype=np.int64)
    classes: NDArray[Any] = of_category[table.labels]
    if not drop_unlisted:
        unlisted, first, counts = np.unique(
            table.labels[classes < 0], return_index=True, return_counts=True
        )
        rows = np.flatnonzero(classes < 0)
        for label, row, count in zip(unlisted, rows[first], counts, strict=True):
            others = f" (as {count - 1:,} others)" if count > 1 else ""
            name = table.categories[label]["name"]
            found.add(table.annotation_name(row) + others, _unlisted(table, name, vocabulary))
    found.check()
    return classes


def _unlisted(table: AnnotationTable, name: str, vocabulary: Vocabulary) -> str:
    labels = vocabulary.labels
    if len(table.names) == _LVIS_V05 and len(labels) == _LVIS_V1 and table.has_lists.any():
        return (
            f"has category {name!r}: this file is LVIS v0.5 ({_LVIS_V05:,} categories), and the "
            f"vocabulary is that of LVIS v1 ({_LVIS_V1:,}); fetch the annotations of v1 from "
            "https://www.lvisdataset.org/dataset"
        )
    close = difflib.get_close_matches(name, labels, n=3)
    return (
        f"has category {name!r}, which is not in the vocabulary of {len(labels)} categories"
        f"{f' (close: {close})' if close else ''}; add it to the vocabulary, or load with "
        "drop_unlisted=True"
    )


def _clipped(table: AnnotationTable, tolerance: float, rows: NDArray[Any]) -> NDArray[np.float64]:
    """``[N, 4]``: the boxes, those over the border clipped to the image; XYWH in pixels.

    Raises:
        DatasetError: one of those in ``rows`` reaches over it by more than the tolerance.
    """
    corner, sides = table.boxes[:, :2], table.boxes[:, 2:]
    limits = table.sizes[table.images][:, ::-1]
    with np.errstate(over="ignore"):  # far outside is far outside
        over = np.maximum(-corner, corner + sides - limits).max(axis=1)
    found = Faults(f"annotation file {table.path}")
    for row in rows[over[rows] > tolerance].tolist():
        width, height = limits[row].tolist()
        found.add(
            table.annotation_name(row),
            f"has box {table.box_text(row)} (x, y, width, height), which reaches {over[row]:g} px "
            f"outside its image of {width}x{height} px; mend the box or the image's size, or let "
            f"boxes be clipped that reach further than {tolerance:g} px: option box_tolerance of "
            "the data set's registration",
        )
    found.check()
    low = np.maximum(corner, 0.0)
    clipped = np.concatenate([low, np.minimum(corner + sides, limits) - low], axis=1)
    return np.where(over[:, None] <= 0, table.boxes, clipped)


def image_paths(table: AnnotationTable, root: str | os.PathLike[str]) -> list[str]:
    """Where the images of a table are.

    Backslashes of Windows are taken for slashes, unless the first such name is that of a file.
    """
    folder = os.fspath(root)
    names = [table.file_names.text(i) for i in range(len(table.file_names))]
    foreign = [name for name in names if "\\" in name] if os.sep == "/" else []
    if foreign and not os.path.exists(os.path.join(folder, foreign[0])):
        logger.warning(
            "%s: %d file names have backslashes, such as %r; they are read as slashes",
            table.path,
            len(foreign),
            foreign[0],
        )
        names = [name.replace("\\", "/") for name in names]
    return [os.path.join(folder, name) for name in names]


def _report(
    table: AnnotationTable,
    chosen: NDArray[np.bool_],
    has_area: NDArray[np.bool_],
    annotated: int,
    expected: int | None,
) -> None:
    """Log what was skipped, and how many images have annotations."""
    path = table.path
    flat = int((chosen & ~has_area).sum())
    if flat:
        logger.warning("%s: skipped %d boxes without area", path, flat)
    degenerate = chosen & has_area & (table.kinds == kinds.DEGENERATE)
    if degenerate.any():
        logger.warning(
            "%s: %d instances have no polygon of three points or more, such as %s; their boxes are "
            "used, and a training of masks leaves them out",
            path,
            degenerate.sum(),
            table.annotation_name(int(np.flatnonzero(degenerate)[0])),
        )
    for name in _roots(table):
        logger.warning(
            "%s: category %r has no annotation and is the group of all others, as Roboflow writes "
            "it; remove it from 'categories', or give a vocabulary without it",
            path,
            name,
        )
    warn_of_placeholders([str(category["name"]) for category in table.categories], str(path))
    logger.info("%s: %d images, %d of them with annotations", path, len(table.sizes), annotated)
    if expected is not None and annotated != expected:
        logger.warning(
            "%s: %d images have annotations, but the published data set has %d; results are "
            "not comparable with published ones unless that is intended",
            path,
            annotated,
            expected,
        )


def _roots(table: AnnotationTable) -> Sequence[str]:
    """Categories without annotations that are the "supercategory" of all others."""
    groups = [str(entry.get("supercategory")) for entry in table.categories]
    used = set(np.unique(table.labels).tolist())
    if not used or len(groups) < 2:
        return []
    return [
        name
        for i, name in enumerate(table.names.values())
        if i not in used and all(group == name for k, group in enumerate(groups) if k != i)
    ]
