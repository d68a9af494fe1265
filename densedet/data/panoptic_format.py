"""Reading panoptic annotations in COCO's format, with checks that name the faulty record.

Format: https://cocodataset.org/#format-data: a JSON file with the segments of each image, and a PNG
an image whose colours are the segment ids.
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from densedet.data.annotation_file import read_annotation_file
from densedet.data.panoptic_reader import ImageFile, PanopticReader
from densedet.data.registration import is_registered
from densedet.data.suspicions import warn_of_placeholders
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary


def load_panoptic_format(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    panoptic_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    hint: str = "",
    image_file: ImageFile = itemgetter("file_name"),
) -> list[dict[str, Any]]:
    """Read a COCO panoptic file into Detectron2's standard panoptic dicts.

    Categories are matched with the vocabulary by name, exactly. In a vocabulary in the order of the
    category ids, as :meth:`densedet.vocabulary.Vocabulary.from_coco` makes it and the class list
    "coco_panoptic" is, the index of a category is the rank of its id. Nothing is read from the
    images or the PNGs.

    Args:
        json_file: the annotation file.
        image_root: folder of the images.
        panoptic_root: folder of the PNGs.
        vocabulary: gives ``category_id``, the index of the category, things and stuff in one.
        hint: added to the message if the file is missing: where it comes from.
        image_file: where the file of an image is, if not under its "file_name".

    Returns:
        One dict an annotated image, by ascending image id: "file_name", "height", "width",
        "image_id", "pan_seg_file_name" and "segments_info", in file order (each "id",
        "category_id", "isthing" and "iscrowd", and where the file has them "bbox" as x, y, width,
        height, and "area", both in pixels). An area that is no number above 0 counts as missing,
        and the id 1.0 is 1.

    Raises:
        DatasetError: the file is missing, is no JSON or lacks keys; a category is not in the
            vocabulary, or a thing in one and stuff in the other; an annotation belongs to an
            unknown image; ids occur twice; a box is not four finite numbers. The message names the
            file and the first ten faulty records, and says how many there are.
    """
    return _panoptic_file(
        json_file, image_root, panoptic_root, vocabulary, hint, image_file
    ).records()


@dataclass(frozen=True)
class _PanopticFile:
    """A panoptic file that was decoded and checked: once in a process, for all that ask.

    Attributes:
        indices: category id of the file -> index in the vocabulary.
        packed: the records as bytes, a fraction of the memory of the objects; each reader gets its
            own objects.
        outline: likewise "images" and "categories" as they are in the file.
    """

    indices: Mapping[int, int]
    packed: bytes
    outline: bytes

    def records(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pickle.loads(self.packed)
        return found


def _panoptic_file(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    panoptic_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    hint: str,
    image_file: ImageFile,
) -> _PanopticFile:
    """Decode a file, unless that was done since its size and its time of change are the same."""
    path, roots = Path(json_file), (os.fspath(image_root), os.fspath(panoptic_root))
    try:
        state = path.stat()
    except OSError:
        read_annotation_file(path, hint)  # which says what is wrong
        raise
    return _decoded(path, state.st_size, state.st_mtime_ns, roots, vocabulary, image_file)


@lru_cache(maxsize=4)
def _decoded(
    path: Path,
    _size: int,
    _time: int,
    roots: tuple[str, str],
    vocabulary: Vocabulary,
    image_file: ImageFile,
) -> _PanopticFile:
    data = read_annotation_file(path)
    reader = PanopticReader(path, data, vocabulary, image_file)
    outline = {key: data[key] for key in ("images", "categories")}
    return _PanopticFile(
        reader.indices, pickle.dumps(reader.records(*roots)), pickle.dumps(outline)
    )


def panoptic_outline(dataset_name: str) -> tuple[dict[str, Any], Mapping[int, int]]:
    """The lists "images" and "categories" of a registered data set's file.

    Args:
        dataset_name: registered by :func:`register_panoptic_format`.

    Returns:
        The lists by their names, and category id of the file -> index in the vocabulary.

    Raises:
        DatasetError: as :func:`load_panoptic_format`.
    """
    metadata = MetadataCatalog.get(dataset_name)
    file = _panoptic_file(
        metadata.panoptic_json,
        metadata.image_root,
        metadata.panoptic_root,
        metadata.vocabulary,
        "",
        metadata.image_file,
    )
    return pickle.loads(file.outline), file.indices


def register_panoptic_format(
    name: str,
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    panoptic_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    hint: str = "",
    image_file: ImageFile = itemgetter("file_name"),
    stuff_under_things: bool = False,
) -> None:
    """Register a COCO panoptic data set; its file is read when the data set is loaded.

    The metadata are those of Detectron2's panoptic sets, with ``vocabulary`` and ``registration``
    (the arguments). Things and stuff share the indices of the vocabulary. Loading the data set adds
    ``thing_dataset_id_to_contiguous_id`` and ``stuff_dataset_id_to_contiguous_id``.

    Args:
        name: name in Detectron2's catalogs.
        json_file, image_root, panoptic_root, vocabulary, hint, image_file: see
            :func:`load_panoptic_format`.
        stuff_under_things: whether the area of stuff counts the pixels that things lie over, as in
            ADE20K; kept in the metadata, for :func:`densedet.data.verification.verify`.

    Raises:
        DatasetError: the name is taken by another data set. The same call twice is fine. On
            loading: as :func:`load_panoptic_format`, or the first PNG is missing.
    """
    arguments: dict[str, Any] = {
        "json_file": os.fspath(json_file),
        "image_root": os.fspath(image_root),
        "panoptic_root": os.fspath(panoptic_root),
        "vocabulary": vocabulary,
    }
    if is_registered(name, arguments):
        return

    def load() -> list[dict[str, Any]]:
        file = _panoptic_file(json_file, image_root, panoptic_root, vocabulary, hint, image_file)
        for kind in ("thing", "stuff"):
            ids = {i: n for i, n in file.indices.items() if vocabulary.kinds[n] == kind}
            MetadataCatalog.get(name).set(**{f"{kind}_dataset_id_to_contiguous_id": ids})
        records = file.records()
        warn_of_placeholders(vocabulary.labels, arguments["json_file"])
        if records and not os.path.isfile(records[0]["pan_seg_file_name"]):
            raise DatasetError(
                f"segment map {records[0]['pan_seg_file_name']} of {json_file} does not exist; "
                f"{hint or 'check the folder of the PNGs'}"
            )
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=list(vocabulary.labels),
        stuff_classes=list(vocabulary.labels),
        vocabulary=vocabulary,
        image_root=arguments["image_root"],
        panoptic_root=arguments["panoptic_root"],
        panoptic_json=arguments["json_file"],
        image_file=image_file,
        evaluator_type="coco_panoptic_seg",
        ignore_label=255,
        label_divisor=1000,
        stuff_under_things=stuff_under_things,
        registration=arguments,
    )
