"""Registering COCO- and LVIS-format data sets in Detectron2's catalogs, by a call."""

import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.detection_utils import check_metadata_consistency

from densedet.data.annotation_file import LISTS, named_ids
from densedet.data.annotation_table import AnnotationTable
from densedet.data.coco_format import coco_records
from densedet.data.record_list import AnnotationList
from densedet.data.registration import is_registered
from densedet.data.table_cache import annotation_table
from densedet.errors import DatasetError, VocabularyError
from densedet.vocabulary import Vocabulary


def read_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary of a file; an annotation file is decoded once for this and for its records.

    Args:
        path: what :meth:`densedet.vocabulary.Vocabulary.from_file` reads. The categories of an
            annotation file are in the order of their ids.

    Raises:
        VocabularyError: the file is missing or holds no vocabulary.
        DatasetError: an annotation file is wrong, or some of its records are.
    """
    if not _has_annotations(path):
        return Vocabulary.from_file(path)
    try:
        return table_vocabulary(annotation_table(path))
    except VocabularyError as error:
        raise DatasetError(f"annotation file {path}: {error}") from error


def table_vocabulary(table: AnnotationTable) -> Vocabulary:
    """The categories of an annotation file, in the order of their ids."""
    entries = sorted(table.categories, key=lambda entry: entry["id"])
    numbered = [{**entry, "id": i} for i, entry in enumerate(entries)]  # ids may be text
    return Vocabulary.from_coco({"categories": numbered})


def _has_annotations(path: str | os.PathLike[str]) -> bool:
    """Whether a file has the lists of an annotation file, which a vocabulary alone has not."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) or not os.path.getsize(path):
            return False
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            return all(text.find(b'"%s"' % key.encode()) >= 0 for key in LISTS)
    except OSError:
        return False


def register_coco_format(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    *,
    evaluator_type: str = "coco",
    hint: str = "",
    seen_only: bool = False,
    drop_unlisted: bool = False,
    annotated_only: bool = False,
    box_tolerance: float = 1.0,
    expected_annotated: int | None = None,
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
        seen_only, drop_unlisted, annotated_only, box_tolerance, expected_annotated: see
            :func:`densedet.data.load_coco_format`.

    Raises:
        DatasetError: the name is taken by another data set. The same call twice is fine.
    """
    options: dict[str, Any] = {
        "seen_only": seen_only,
        "drop_unlisted": drop_unlisted,
        "annotated_only": annotated_only,
        "box_tolerance": box_tolerance,
        "expected_annotated": expected_annotated,
    }
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
        table = annotation_table(json_file, hint)
        ids = named_ids(table.names, vocabulary)
        MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id=ids)
        return coco_records(table, image_root, vocabulary, **options)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=list(vocabulary.labels),
        vocabulary=vocabulary,
        json_file=arguments["json_file"],
        image_root=arguments["image_root"],
        evaluator_type=evaluator_type,
        annotated_only=annotated_only,
        hint=hint,
        registration=arguments,
    )


def get_records(names: str | Sequence[str], filter_empty: bool = True) -> list[dict[str, Any]]:
    """Detectron2's ``get_detection_dataset_dicts``, which makes no annotation to look at it.

    Args:
        names: of registered data sets; their records follow each other.
        filter_empty: whether images without an annotation that is no crowd are left out.

    Returns:
        The records; the distribution of their classes is logged.

    Raises:
        DatasetError: one of the data sets is empty, or nothing is left, or what loading raises.
    """
    names = [names] if isinstance(names, str) else list(names)
    records: list[dict[str, Any]] = []
    for name in names:
        found = DatasetCatalog.get(name)
        if not found:
            raise DatasetError(f"data set {name!r} is empty")
        records += found
    if "annotations" not in records[0]:
        return records
    outlines: list[dict[str, Any]] = [
        {"record": record, "annotations": _Outline(record["annotations"])} for record in records
    ]
    if filter_empty:
        outlines = filter_images_with_only_crowd_annotations(outlines)
    if MetadataCatalog.get(names[0]).get("thing_classes") is not None:
        check_metadata_consistency("thing_classes", names)
        together = {"annotations": chain.from_iterable(o["annotations"] for o in outlines)}
        labels = MetadataCatalog.get(names[0]).thing_classes
        print_instances_class_histogram([together], labels)
    if not outlines:
        raise DatasetError(f"no image of {', '.join(names)} has an annotation that is no crowd")
    return [outline["record"] for outline in outlines]


class _Outline:
    """An iterable over annotations; of an annotation table it makes no more than is looked at."""

    __slots__ = ("annotations",)

    def __init__(self, annotations: Sequence[dict[str, Any]]) -> None:
        self.annotations = annotations

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if isinstance(self.annotations, AnnotationList):
            return self.annotations.outline()
        return iter(self.annotations)
