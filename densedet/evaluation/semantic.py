"""Open-vocabulary semantic segmentation: IoU over seen, unseen and all classes."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from densedet.data.semantic_mapper import LabelReader
from densedet.errors import ConfigError, DatasetError
from densedet.evaluation.evaluator import OpenVocabularyEvaluator, check_complete
from densedet.evaluation.semantic_iou import MeanOver, count_confusion, semantic_figures
from densedet.files import atomic_path, writing
from densedet.modeling.pixel_scores import PixelScores, StoredScores
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class OpenVocabularySemanticEvaluator(OpenVocabularyEvaluator):
    """IoU of semantic segmentation over seen, unseen and all classes of the data set's vocabulary.

    An output has "sem_seg": scores [K, H, W], `PixelScores` or a tensor, of which the highest
    counts (a pixel with a NaN has no class), or a map of class indices [H, W], with the data set's
    ignored label where there is no class; H and W are those of the label map. A pixel without class
    is wrong. An image that a
    process gets twice counts once.

    :meth:`evaluate` returns ``{"sem_seg": ...}`` with the figures of
    :func:`densedet.evaluation.semantic_iou.semantic_figures`, in percent. The confusion matrix is
    stored in ``{output_dir}/confusion_{dataset_name}.npz``: "confusion" [K, K + 1] int64 (true
    class by predicted class, the last column for pixels without one; ignored pixels are left out),
    "labels" and "seen" [K].

    Args:
        dataset_name: name in the catalogs.
        sem_seg_loading_fn: reads a label map [H, W] from its path; None: a :class:`LabelReader`
            for the data set's classes and ignored label.
        mean_over: the classes whose IoU is averaged: "truth", those that occur in the truth (as in
            Detectron2's ``SemSegEvaluator``); "either", those that occur in the truth or in a
            prediction, where one that is only predicted counts 0. The means of both are in the
            results.
        output_dir: folder for the confusion matrix; None stores nothing.

    Raises:
        ConfigError: unknown ``mean_over``.
        DatasetError: the data set has no vocabulary or no label maps.
    """

    def __init__(
        self,
        dataset_name: str,
        sem_seg_loading_fn: Callable[[str], np.ndarray] | None = None,
        mean_over: MeanOver = "truth",
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if mean_over not in get_args(MeanOver):
            choices = ", ".join(get_args(MeanOver))
            raise ConfigError(f"mean_over={mean_over!r}: choose from {choices}")
        self.dataset_name = dataset_name
        self.vocabulary, self.ignore_label = _classes(dataset_name)
        self.sem_seg_loading_fn = sem_seg_loading_fn or LabelReader(
            len(self.vocabulary), self.ignore_label
        )
        self.mean_over = mean_over
        self.output_dir = output_dir
        self._label_maps = _label_maps(dataset_name)
        self.reset()

    def reset(self) -> None:
        """Forget the images so far."""
        count = len(self.vocabulary)
        self._confusion = np.zeros((count, count + 1), dtype=np.int64)
        self._images: set[str] = set()

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Count the pixels of a batch of images.

        Args:
            inputs: records with "file_name".
            outputs: dicts with "sem_seg", see the class.

        Raises:
            ConfigError: an output has another number of classes than the data set.
            DatasetError: an image is not of the data set, its label map has another size than the
                output, or a label that is no class.
            ImageError: a label map cannot be read.
        """
        for record, output in zip(inputs, outputs, strict=True):
            image = record["file_name"]
            if image in self._images:
                continue
            if image not in self._label_maps:
                raise DatasetError(
                    f"image {image} is not of the data set {self.dataset_name!r}; evaluate it on "
                    "the one it was loaded from"
                )
            prediction = self._predicted_classes(output["sem_seg"], image)
            self._confusion += self._count(self._label_maps[image], prediction)
            self._images.add(image)

    def _predicted_classes(self, sem_seg: Any, image: str) -> np.ndarray:
        """The class of each pixel, K where there is none: [H, W] int64."""
        count = len(self.vocabulary)
        if not isinstance(sem_seg, PixelScores):
            sem_seg = torch.as_tensor(sem_seg)
            if sem_seg.ndim == 3 and len(sem_seg) == count:
                sem_seg = StoredScores(sem_seg)
        if isinstance(sem_seg, PixelScores) and sem_seg.count == count:
            classes, values = sem_seg.max()
            return classes.masked_fill(values.isnan(), count).cpu().numpy()
        if isinstance(sem_seg, PixelScores) or sem_seg.ndim != 2 or sem_seg.is_floating_point():
            raise ConfigError(
                f"the model's sem_seg for {image} is {getattr(sem_seg, 'dtype', 'scores')} of the "
                f"shape {list(sem_seg.shape)}; {self.dataset_name} has {count} classes: give the "
                f"model its vocabulary, for scores [{count}, H, W] or a map of integers [H, W]"
            )
        ids = sem_seg.cpu().numpy().astype(np.int64)
        nothing = ids == self.ignore_label
        wrong = ids[~nothing & ((ids < 0) | (ids >= count))]
        if wrong.size:
            raise ConfigError(
                f"the model's sem_seg for {image} has the class {wrong[0]}; {self.dataset_name} "
                f"has the classes 0 to {count - 1} and {self.ignore_label} for none: give the "
                "model its vocabulary"
            )
        return np.where(nothing, count, ids)

    def _count(self, label_map: str, prediction: np.ndarray) -> np.ndarray:
        truth = self.sem_seg_loading_fn(label_map)
        if truth.shape != prediction.shape:
            raise DatasetError(
                f"label map {label_map} has the shape {list(truth.shape)} (height, width), but the "
                f"model's sem_seg {list(prediction.shape)}; give the model records with the "
                "'height' and 'width' of their files"
            )
        try:
            return count_confusion(truth, prediction, len(self.vocabulary), self.ignore_label)
        except ValueError as error:
            raise DatasetError(f"label map {label_map}: {error}; prepare it again") from error

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The figures, on the main process; an empty dict on the others.

        Raises:
            DatasetError: an image has no prediction, or came from several processes.
            OutputError: the confusion matrix cannot be written.
        """
        gathered = comm.gather((self._confusion, self._images))
        if not comm.is_main_process():
            return {}
        confusion = np.sum([part for part, _ in gathered], axis=0)
        self._check_images([images for _, images in gathered])
        if self.output_dir is not None:
            self._store(confusion, Path(self.output_dir) / f"confusion_{self.dataset_name}.npz")
        figures = semantic_figures(
            confusion, self.vocabulary.labels, self.vocabulary.seen, self.mean_over
        )
        self._log(figures)
        return {"sem_seg": figures}

    def _check_images(self, parts: Sequence[set[str]]) -> None:
        images = set().union(*parts)
        repeated = sum(map(len, parts)) - len(images)
        if repeated:
            raise DatasetError(
                f"{repeated} images of {self.dataset_name!r} came from several processes and would "
                "count more than once; give each process its own, as build_test_loader does"
            )
        missing = [image for image in self._label_maps if image not in images]
        check_complete(self.dataset_name, missing, len(self._label_maps))

    def _store(self, confusion: np.ndarray, path: Path) -> None:
        with atomic_path(path) as temporary, writing(path):
            np.savez_compressed(
                temporary,
                confusion=confusion,
                labels=np.array(self.vocabulary.labels),
                seen=np.array(self.vocabulary.seen),
            )
        logger.info("confusion matrix: %s", path)

    def _log(self, figures: dict[str, float]) -> None:
        names = ("mIoU", "mIoU-seen", "mIoU-unseen", "hIoU", "fwIoU", "mACC", "pACC")
        logger.info(
            "sem_seg on %s: %s",
            self.dataset_name,
            ", ".join(f"{name} {figures[name]:.2f}" for name in names),
        )
        logger.info(
            "mIoU and hIoU: means over the classes that occur in the truth%s (mean_over=%r); "
            "mIoU-truth %.2f, mIoU-either %.2f",
            " or in a prediction" if self.mean_over == "either" else "",
            self.mean_over,
            figures["mIoU-truth"],
            figures["mIoU-either"],
        )


def _classes(dataset_name: str) -> tuple[Vocabulary, int]:
    metadata = MetadataCatalog.get(dataset_name)
    vocabulary, ignore_label = metadata.get("vocabulary"), metadata.get("ignore_label")
    if vocabulary is None or ignore_label is None:
        raise DatasetError(
            f"data set {dataset_name!r} is not registered with a vocabulary and label maps; "
            "register it with densedet.data.register_semantic_format"
        )
    return vocabulary, ignore_label


def _label_maps(dataset_name: str) -> dict[str, str]:
    """The label map of each image."""
    records = DatasetCatalog.get(dataset_name)
    without = [r["file_name"] for r in records if "sem_seg_file_name" not in r]
    if without:
        raise DatasetError(
            f"data set {dataset_name!r}: image {without[0]} has no label map; register it with "
            "densedet.data.register_semantic_format"
        )
    return {record["file_name"]: record["sem_seg_file_name"] for record in records}
