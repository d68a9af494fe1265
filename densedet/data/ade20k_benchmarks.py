"""ADE20K-150: semantic and panoptic, and what is made from the official files of both."""

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
    label_sources,
    panoptic_conversion,
    segment_entry,
)
from densedet.data.images import read_image, read_label_map
from densedet.data.panoptic_format import register_panoptic_format
from densedet.data.semantic_format import register_semantic_format
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary, class_list_ids

PARTS = (("train", "training"), ("val", "validation"))
FOLDER = "ADEChallengeData2016"
ADE20K_HINT = (
    "ADE20K-150 (http://sceneparsing.csail.mit.edu): unpack ADEChallengeData2016.zip so that there "
    f"are <root>/{FOLDER}/images/training/*.jpg and <root>/{FOLDER}/annotations/training/*.png, "
    "and set DETECTRON2_DATASETS=<root> (default: datasets)"
)
_ADE20K_LABELS = (
    f"its label maps have to be prepared from those in <root>/{FOLDER}/annotations: label 0 "
    "becomes 255, every other label one less; tools/prepare_datasets.py ade20k_150 does that (as "
    "Detectron2's datasets/prepare_ade20k_sem_seg.py) and writes annotations_detectron2"
)
PANOPTIC_HINT = (
    "ADE20K (http://sceneparsing.csail.mit.edu): unpack ADEChallengeData2016.zip into <root>, and "
    "annotations_instance.tar of the instance segmentation "
    "(http://sceneparsing.csail.mit.edu/data/ChallengeData2017) into it, so that there are "
    f"<root>/{FOLDER}/images/validation/*.jpg, <root>/{FOLDER}/annotations/validation/*.png and "
    f"<root>/{FOLDER}/annotations_instance/validation/*.png; then run tools/prepare_datasets.py "
    "ade20k_panoptic, and set DETECTRON2_DATASETS=<root> (default: datasets)"
)


def register_ade20k(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``ade20k_150_train`` and ``ade20k_150_val``: 20,210 and 2,000 images, 150 classes.

    The class names are those that DenseCLIP (arXiv 2112.01518) gives its text encoder. The label
    maps are those that ``tools/prepare_datasets.py ade20k_150`` writes, or Detectron2's
    ``datasets/prepare_ade20k_sem_seg.py``.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets". Nothing is read here.

    Raises:
        DatasetError: one of the names is taken by another data set. On loading: as
            :func:`densedet.data.load_semantic_format`; the first label map is not what the
            preparation makes of the one in the folder ``annotations``, where that is still there.
    """
    folder = datasets_root(root) / FOLDER
    for part, subfolder in PARTS:
        prepared = folder / "annotations_detectron2" / subfolder
        register_semantic_format(
            f"ade20k_150_{part}",
            folder / "images" / subfolder,
            prepared,
            Vocabulary.named("ade20k_150_denseclip"),
            hint=ADE20K_HINT,
            label_hint=_ADE20K_LABELS,
            check=partial(_check_prepared, prepared, folder / "annotations" / subfolder),
        )


def _check_prepared(prepared: Path, source: Path, records: list[dict[str, Any]]) -> None:
    """Compare the first label map with its source: labels that were copied look much alike."""
    path = Path(records[0]["sem_seg_file_name"])
    raw = source / path.relative_to(prepared)
    if not raw.is_file():
        return
    if not np.array_equal(read_label_map(path), read_label_map(raw) - np.uint8(1)):  # 0 -> 255
        raise DatasetError(f"label map {path} was not prepared from {raw}: {_ADE20K_LABELS}")


def register_ade20k_panoptic(root: str | os.PathLike[str] | None = None) -> None:
    """Register ``ade20k_panoptic_{train,val}``: 20,210 and 2,000 images, 100 things and 50 stuff.

    The files are those that ``tools/prepare_datasets.py`` writes; those of MaskFormer's
    ``datasets/prepare_ade20k_pan_seg.py`` have the same names and categories.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets". Nothing is read here.

    Raises:
        DatasetError: the name is taken by another data set.
    """
    folder = datasets_root(root) / FOLDER
    for part, subfolder in PARTS:
        register_panoptic_format(
            f"ade20k_panoptic_{part}",
            folder / f"ade20k_panoptic_{part}.json",
            folder / "images" / subfolder,
            folder / f"ade20k_panoptic_{part}",
            Vocabulary.named("ade20k_panoptic"),
            hint=PANOPTIC_HINT,
            stuff_under_things=True,
        )


def ade20k_150_conversions(root: Path) -> Iterator[Conversion]:
    """The label maps of ``ade20k_150_{train,val}``: 0 becomes 255, every other label one less."""
    table = LabelTable(range(1, 151), [0])
    for part, subfolder in PARTS:
        yield label_conversion(
            root / FOLDER / "annotations_detectron2" / subfolder,
            partial(_sources, root, subfolder, ADE20K_HINT),
            table.of_image,
            f"ade20k_150_{part}",
        )


def ade20k_panoptic_conversions(root: Path) -> Iterator[Conversion]:
    """The PNGs and JSON files of ``ade20k_panoptic_{train,val}``.

    As MaskFormer's preparation: the regions of stuff are those of the semantic annotation; the
    things of the instance annotation lie over them; pixels of a thing's class without an instance
    are void. The area of stuff counts what lies under things.
    """
    categories = category_entries(
        Vocabulary.named("ade20k_panoptic"), class_list_ids("ade20k_panoptic")
    )
    for part, subfolder in PARTS:
        yield panoptic_conversion(
            root / FOLDER / f"ade20k_panoptic_{part}",
            categories,
            partial(_panoptic_sources, root, subfolder),
            _Segments(_instance_root(root, subfolder)),
            f"ade20k_panoptic_{part}",
        )


def _sources(root: Path, subfolder: str, hint: str) -> dict[str, Path]:
    folder = root / FOLDER
    return label_sources(
        folder / "images" / subfolder,
        folder / "annotations" / subfolder,
        hint,
    )


def _panoptic_sources(root: Path, subfolder: str) -> dict[str, Path]:
    """The semantic annotations; each has an instance annotation of the same name."""
    sources = _sources(root, subfolder, PANOPTIC_HINT)
    folder = _instance_root(root, subfolder)
    check_files([folder / path.name for path in sources.values()], PANOPTIC_HINT)
    return sources


def _instance_root(root: Path, subfolder: str) -> Path:
    return root / FOLDER / "annotations_instance" / subfolder


class _Segments:
    """Makes the segments of an image from its semantic and its instance annotation."""

    def __init__(self, instance_root: Path) -> None:
        self.instance_root = instance_root
        kinds = Vocabulary.named("ade20k_panoptic").kinds
        self.stuff = [i for i, kind in enumerate(kinds) if kind == "stuff"]
        self.things = [i for i, kind in enumerate(kinds) if kind == "thing"]

    def __call__(self, path: Path) -> PanopticImage:
        semantic = read_label_map(path)
        instance_path = self.instance_root / path.name
        classes, numbers, _ = np.moveaxis(read_image(instance_path), 2, 0)
        if classes.shape != semantic.shape:
            raise DatasetError(
                f"instance map {instance_path} has another size than {path}; unpack both again"
            )
        ids = np.zeros(semantic.shape, dtype=np.uint32)
        segments: list[dict[str, Any]] = []
        for category in np.intersect1d(semantic, np.add(self.stuff, 1)):
            mask = semantic == category
            ids[mask] = len(segments) + 1
            segments.append(segment_entry(mask, len(segments) + 1, int(category) - 1))
        for number in np.unique(numbers[numbers > 0]):
            mask = numbers == number
            category_id = self._thing(classes[mask], int(number), instance_path)
            ids[mask] = len(segments) + 1
            segments.append(segment_entry(mask, len(segments) + 1, category_id))
        height, width = semantic.shape
        name = path.stem
        image = {"id": name, "file_name": f"{name}.jpg", "width": width, "height": height}
        return PanopticImage(image, ids, segments)

    def _thing(self, classes: NDArray[np.uint8], number: int, path: Path) -> int:
        """The category of an instance: label i + 1 is the i-th thing."""
        found = np.unique(classes)
        if len(found) > 1 or not 1 <= found[0] <= len(self.things):
            raise DatasetError(
                f"instance map {path}: instance {number} has the classes {found.tolist()} instead "
                f"of one from 1 to {len(self.things)}; unpack annotations_instance.tar again"
            )
        return self.things[int(found[0]) - 1]
