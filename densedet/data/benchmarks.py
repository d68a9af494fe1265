"""The data sets that densedet knows, in one table, and registering all of them."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from densedet.data import ade20k_benchmarks as ade20k
from densedet.data import cityscapes, coco_benchmarks, pascal, semantic_benchmarks
from densedet.data import detection_benchmarks as detection
from densedet.data.annotation_file import datasets_root
from densedet.data.conversion import Conversion
from densedet.errors import DatasetError, VocabularyError

logger = logging.getLogger(__name__)


def _none(_root: Path) -> Iterator[Conversion]:
    yield from ()


@dataclass(frozen=True)
class Benchmark:
    """A data set from its official files.

    Attributes:
        title: what it is called.
        splits: the name in Detectron2's catalogs -> the official number of images.
        sources: files and folders of the archives, below the root.
        hint: where the archives are obtained, and how they are to be unpacked.
        register: registers the splits below a root.
        conversions: what has to be made from the archives before the data set can be loaded.
        raw: files and folders of the archives that only the conversions need.
        names_file: file with the names of the classes below the root, if densedet does not ship
            them; the data set is registered only where it is.
        rare_classes: whether some classes have so few images that none need be in the training
            split.
    """

    title: str
    splits: Mapping[str, int]
    sources: tuple[str, ...]
    hint: str
    register: Callable[[Path], None]
    conversions: Callable[[Path], Iterator[Conversion]] = _none
    raw: tuple[str, ...] = ()
    names_file: str = ""
    rare_classes: bool = False

    @property
    def complete_splits(self) -> tuple[str, ...]:
        """The splits for training, if each seen class occurs in them."""
        return () if self.rare_classes else tuple(s for s in self.splits if "_train" in s)


def _coco(*folders: str) -> tuple[str, ...]:
    return tuple(f"coco/{folder}" for folder in folders)


_COCO_IMAGES = ("train2017", "val2017")
_CONTEXT = tuple(
    f"{pascal.CONTEXT_FOLDER}/{name}"
    for name in ("JPEGImages", "ImageSets/Main/train.txt", "ImageSets/Main/val.txt")
)

BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "coco": Benchmark(
            "COCO 2017 detection, 80 classes",
            {"coco_train": 118_287, "coco_val": 5_000},
            _coco(
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
                *_COCO_IMAGES,
            ),
            detection.COCO_HINT,
            detection.register_coco_detection,
        ),
        "ov_coco": Benchmark(
            "OV-COCO, 48 seen and 17 unseen classes",
            {"ov_coco_train_seen": 118_287, "ov_coco_val": 4_836},
            _coco(
                "annotations/instances_train2017.json",
                "annotations/instances_val2017.json",
                *_COCO_IMAGES,
            ),
            detection.COCO_HINT,
            partial(detection.register_open_vocabulary, "ov_coco"),
        ),
        "ov_lvis": Benchmark(
            "OV-LVIS v1, 866 seen and 337 rare, unseen classes",
            {"ov_lvis_train_seen": 100_170, "ov_lvis_val": 19_809},
            ("lvis/lvis_v1_train.json", "lvis/lvis_v1_val.json", *_coco(*_COCO_IMAGES)),
            detection.LVIS_HINT,
            partial(detection.register_open_vocabulary, "ov_lvis"),
        ),
        "coco_panoptic": Benchmark(
            "COCO panoptic, 133 classes",
            {"coco_panoptic_train": 118_287, "coco_panoptic_val": 5_000},
            _coco(
                "annotations/panoptic_train2017.json",
                "annotations/panoptic_val2017.json",
                "panoptic_train2017",
                "panoptic_val2017",
                *_COCO_IMAGES,
            ),
            coco_benchmarks.PANOPTIC_HINT,
            coco_benchmarks.register_coco_panoptic,
        ),
        "ade20k_150": Benchmark(
            "ADE20K, semantic, 150 classes",
            {"ade20k_150_train": 20_210, "ade20k_150_val": 2_000},
            (f"{ade20k.FOLDER}/images",),
            ade20k.ADE20K_HINT,
            ade20k.register_ade20k,
            ade20k.ade20k_150_conversions,
            (f"{ade20k.FOLDER}/annotations",),
        ),
        "ade20k_panoptic": Benchmark(
            "ADE20K, panoptic, 150 classes",
            {"ade20k_panoptic_train": 20_210, "ade20k_panoptic_val": 2_000},
            (f"{ade20k.FOLDER}/images",),
            ade20k.PANOPTIC_HINT,
            ade20k.register_ade20k_panoptic,
            ade20k.ade20k_panoptic_conversions,
            (f"{ade20k.FOLDER}/annotations", f"{ade20k.FOLDER}/annotations_instance"),
        ),
        "ade20k_full": Benchmark(
            "ADE20K-Full, 847 classes",
            {"ade20k_full_sem_seg_train": 25_574, "ade20k_full_sem_seg_val": 2_000},
            tuple(
                f"{semantic_benchmarks.ADE20K_FULL}/{name}"
                for name in ("categories.json", "images_detectron2", "annotations_detectron2")
            ),
            semantic_benchmarks.ADE20K_FULL_HINT,
            semantic_benchmarks.register_ade20k_full,
            names_file=f"{semantic_benchmarks.ADE20K_FULL}/categories.json",
        ),
        "coco_stuff_164k": Benchmark(
            "COCO-Stuff 164k, 171 classes",
            {"coco_stuff_164k_train": 118_287, "coco_stuff_164k_val": 5_000},
            _coco(*_COCO_IMAGES),
            coco_benchmarks.STUFF_HINT,
            coco_benchmarks.register_coco_stuff_164k,
            coco_benchmarks.coco_stuff_164k_conversions,
            _coco("stuffthingmaps/train2017", "stuffthingmaps/val2017"),
        ),
        "coco_stuff_10k": Benchmark(
            "COCO-Stuff 10k, 171 classes",
            {
                "coco_2017_train_stuff_10k_sem_seg": 9_000,
                "coco_2017_test_stuff_10k_sem_seg": 1_000,
            },
            tuple(f"{semantic_benchmarks.COCO_STUFF}/{name}" for name in ("images", "imageLists")),
            semantic_benchmarks.COCO_STUFF_HINT,
            semantic_benchmarks.register_coco_stuff10k,
            semantic_benchmarks.coco_stuff10k_conversions,
            (f"{semantic_benchmarks.COCO_STUFF}/annotations",),
        ),
        "voc_20": Benchmark(
            "PASCAL VOC 2012 segmentation, 20 classes",
            {"voc_20_train": 1_464, "voc_20_val": 1_449},
            (f"{pascal.VOC_FOLDER}/JPEGImages", f"{pascal.VOC_FOLDER}/ImageSets/Segmentation"),
            pascal.VOC_HINT,
            pascal.register_voc_20,
            pascal.voc_20_conversions,
            (f"{pascal.VOC_FOLDER}/SegmentationClass",),
        ),
        "context_59": Benchmark(
            "PASCAL-Context, 59 classes",
            {"context_59_train": 4_998, "context_59_val": 5_105},
            (*_CONTEXT, pascal.NAMES_FILES[59]),
            pascal.CONTEXT_HINT,
            partial(pascal.register_context, 59),
            pascal.context_59_conversions,
            (f"{pascal.CONTEXT_FOLDER}/59_context_labels",),
            pascal.NAMES_FILES[59],
        ),
        "context_459": Benchmark(
            "PASCAL-Context, 459 classes",
            {"context_459_train": 4_998, "context_459_val": 5_105},
            (*_CONTEXT, pascal.NAMES_FILES[459]),
            pascal.CONTEXT_HINT,
            partial(pascal.register_context, 459),
            pascal.context_459_conversions,
            (f"{pascal.CONTEXT_FOLDER}/trainval",),
            pascal.NAMES_FILES[459],
            rare_classes=True,
        ),
        "cityscapes": Benchmark(
            "Cityscapes, semantic and panoptic, 19 classes",
            {
                "cityscapes_semantic_train": 2_975,
                "cityscapes_panoptic_train": 2_975,
                "cityscapes_semantic_val": 500,
                "cityscapes_panoptic_val": 500,
            },
            ("cityscapes/leftImg8bit",),
            cityscapes.HINT,
            cityscapes.register_cityscapes,
            cityscapes.cityscapes_conversions,
            ("cityscapes/gtFine",),
        ),
        "objects365": Benchmark(
            "Objects365 version 1, 365 classes",
            {"objects365_train": 608_606, "objects365_val": 30_000},
            tuple(
                f"{detection.OBJECTS365}/{name}"
                for name in ("objects365_train.json", "objects365_val.json", "train", "val")
            ),
            detection.OBJECTS365_HINT,
            detection.register_objects365,
            detection.objects365_conversions,
            names_file=f"{detection.OBJECTS365}/categories.json",
        ),
    }
)
"""By the names that ``tools/prepare_datasets.py`` takes."""


def register_all(root: str | os.PathLike[str] | None = None) -> None:
    """Register the splits of all :data:`BENCHMARKS`, in Detectron2's layout.

    The data need not be there: no annotation is read, and the open-vocabulary splits are computed
    when a data set is loaded. ADE20K-Full, PASCAL-Context and Objects365, whose class names come
    with the data, are registered only where the file of the names is; one that is wrong is logged
    as a warning, and the call of that data set alone
    (such as :func:`densedet.data.register_ade20k_full`) raises.

    Args:
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets".

    Raises:
        DatasetError: one of the names is taken by another data set.
    """
    folder = datasets_root(root)
    for name, benchmark in BENCHMARKS.items():
        if not benchmark.names_file:
            benchmark.register(folder)
        elif (folder / benchmark.names_file).is_file():
            try:
                benchmark.register(folder)
            except (DatasetError, VocabularyError) as error:
                logger.warning("%s is not registered: %s", name, error)
