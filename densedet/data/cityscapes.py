"""Cityscapes (arXiv 1604.01685), fine annotations: semantic and panoptic, 19 classes."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from densedet.data.annotation_file import datasets_root
from densedet.data.conversion import (
    Conversion,
    LabelTable,
    PanopticImage,
    category_entries,
    check_files,
    label_conversion,
    panoptic_conversion,
    segment_entry,
)
from densedet.data.images import read_label_map
from densedet.data.panoptic_format import register_panoptic_format
from densedet.data.semantic_format import register_semantic_format
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary, class_list_ids

PARTS = ("train", "val")
VOCABULARY = "cityscapes_19"
HINT = (
    "Cityscapes (https://www.cityscapes-dataset.com, after registration): unpack "
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip so that there are "
    "<root>/cityscapes/leftImg8bit/val/*/*_leftImg8bit.png and "
    "<root>/cityscapes/gtFine/val/*/*_gtFine_labelIds.png; then run tools/prepare_datasets.py "
    "cityscapes, and set DETECTRON2_DATASETS=<root> (default: datasets)"
)
_IMAGE, _LABELS, _INSTANCES = "_leftImg8bit", "_gtFine_labelIds", "_gtFine_instanceIds"
_LAST_ID = 33  # of the classes; those that are not evaluated have ids of their own


def register_cityscapes(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``cityscapes_{semantic,panoptic}_{train,val}``: 2,975 and 500 images, 19 classes.

    The semantic label maps are those that ``tools/prepare_datasets.py`` writes to
    ``cityscapes/annotations_detectron2``. The panoptic files are those of the official
    ``createPanopticImgs.py`` of cityscapesScripts, which the same tool writes: segments of a thing
    class without instances are crowds.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets". Nothing is read here.

    Raises:
        DatasetError: one of the names is taken by another data set.
    """
    folder = datasets_root(root) / "cityscapes"
    vocabulary = Vocabulary.named(VOCABULARY)
    for part in PARTS:
        images = folder / "leftImg8bit" / part
        register_semantic_format(
            f"cityscapes_semantic_{part}",
            images,
            folder / "annotations_detectron2" / part,
            vocabulary,
            hint=HINT,
        )
        register_panoptic_format(
            f"cityscapes_panoptic_{part}",
            folder / f"gtFine/cityscapes_panoptic_{part}.json",
            images,
            folder / f"gtFine/cityscapes_panoptic_{part}",
            vocabulary,
            hint=HINT,
            image_file=_image_file,
        )


def cityscapes_conversions(root: Path) -> Iterator[Conversion]:
    """The label maps of 19 classes, and the panoptic PNGs and JSON files."""
    ids = class_list_ids(VOCABULARY)
    table = LabelTable(ids, range(_LAST_ID + 1))
    categories = category_entries(Vocabulary.named(VOCABULARY), ids)

    def read(path: Path) -> NDArray[np.unsignedinteger]:
        return table(_label_ids(path), path)

    for part in PARTS:
        yield label_conversion(
            root / "cityscapes/annotations_detectron2" / part,
            partial(_semantic_sources, root, part),
            read,
            f"cityscapes_semantic_{part}",
        )
        yield panoptic_conversion(
            root / f"cityscapes/gtFine/cityscapes_panoptic_{part}",
            categories,
            partial(_panoptic_sources, root, part),
            _segments,
            f"cityscapes_panoptic_{part}",
        )


def _image_file(image: dict[str, Any]) -> str:
    """The official JSON file names "aachen_000000_000019_gtFine_leftImg8bit.png"."""
    city = str(image["id"]).split("_")[0]
    return f"{city}/{image['id']}{_IMAGE}.png"


def _semantic_sources(root: Path, part: str) -> dict[str, Path]:
    """The label maps by the paths of their images."""
    return {
        f"{path.parent.name}/{path.name.replace(_LABELS, _IMAGE)[:-4]}": path
        for path in _annotations(root, part, _LABELS)
    }


def _panoptic_sources(root: Path, part: str) -> dict[str, Path]:
    return {
        path.name.replace("_instanceIds.png", "_panoptic"): path
        for path in _annotations(root, part, _INSTANCES)
    }


def _annotations(root: Path, part: str, suffix: str) -> list[Path]:
    """The annotation of each image."""
    folder = root / "cityscapes"
    images = sorted((folder / "leftImg8bit" / part).glob(f"*/*{_IMAGE}.png"))
    if not images:
        raise DatasetError(
            f"image folder {folder / 'leftImg8bit' / part} has no files */*{_IMAGE}.png; {HINT}"
        )
    paths = [
        folder / "gtFine" / part / path.parent.name / path.name.replace(_IMAGE, suffix)
        for path in images
    ]
    check_files(paths, HINT)
    return paths


def _label_ids(path: Path) -> NDArray[np.uint8]:
    """Read a map of the official ids; the map of the instances beside it must agree."""
    labels = read_label_map(path)
    instance_path = path.with_name(path.name.replace(_LABELS, _INSTANCES))
    instances = read_label_map(instance_path, bits=16)
    if not np.array_equal(labels, np.where(instances < 1000, instances, instances // 1000)):
        raise DatasetError(
            f"label map {path} and instance map {instance_path} contradict each other (are the "
            "labels trainIds?); unpack gtFine_trainvaltest.zip again"
        )
    return labels


def _segments(path: Path) -> PanopticImage:
    """As createPanopticImgs.py: 26 is the class of a group of cars, 26004 that of one car."""
    instances = read_label_map(path, bits=16)
    things = Vocabulary.named(VOCABULARY).kinds
    kinds = dict(zip(class_list_ids(VOCABULARY), things, strict=True))
    ids = np.zeros(instances.shape, dtype=np.uint32)
    segments = []
    for number in np.unique(instances).tolist():
        category_id = number if number < 1000 else number // 1000
        if category_id > _LAST_ID:
            raise DatasetError(
                f"instance map {path} has the label {number}, which is no instance of Cityscapes; "
                "unpack gtFine_trainvaltest.zip again"
            )
        if category_id in kinds:
            mask = instances == number
            ids[mask] = number
            crowd = number < 1000 and kinds[category_id] == "thing"
            segments.append(segment_entry(mask, number, category_id, crowd))
    height, width = instances.shape
    name = path.name.replace(f"{_INSTANCES}.png", "")
    file_name = f"{name}_gtFine{_IMAGE}.png"
    image = {"id": name, "file_name": file_name, "width": width, "height": height}
    return PanopticImage(image, ids, segments)
