"""Registering COCO- and LVIS-format data sets in Detectron2's catalogs, by a call."""

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from densedet.data.annotation_file import named_ids
from densedet.data.coco_format import coco_records
from densedet.data.registration import is_registered
from densedet.data.table_cache import annotation_table
from densedet.vocabulary import Vocabulary


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
        annotated_only=options.get("annotated_only", False),
        hint=hint,
        registration=arguments,
    )
