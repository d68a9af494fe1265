"""Open-vocabulary detection on LVIS: AP of the rare, common, frequent, seen and unseen classes."""

import itertools
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from densedet.errors import ConfigError, DatasetError
from densedet.evaluation.evaluator import OpenVocabularyEvaluator
from densedet.evaluation.ground_truth import (
    check_images,
    check_masks,
    checked_ground_truth,
    has_masks,
    registered_metadata,
    restrict_ground_truth,
)
from densedet.evaluation.lvis_precision import (
    AREAS,
    IOU_THRESHOLDS,
    check_lists,
    federated_precision,
)
from densedet.evaluation.open_vocabulary import (
    at_iou,
    class_ap,
    mean_of_valid,
    open_vocabulary_ap,
)
from densedet.files import write_text
from densedet.modeling.run_lengths import detection_records

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 300
RESULTS_FILE = "lvis_instances_results.json"
TASKS = ("bbox", "segm")
FREQUENCIES = ("r", "c", "f")


def evaluate_lvis_detections(
    gt: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    seen: Collection[str],
    *,
    max_dets: int = MAX_DETECTIONS,
) -> dict[str, Any]:
    """LVIS's metrics for detections, with the means over seen, unseen and all classes.

    The figures are those of the ``lvis`` package; :func:`federated_precision` has the rules.

    Args:
        gt: LVIS-format ground truth; every one of its categories is evaluated.
        detections: COCO's result format, with the category ids of ``gt``: "image_id",
            "category_id", "score", "bbox" (XYWH, pixels) and for "segm" "segmentation" (RLE). May
            be empty: the AP of a class with ground truth is then 0. Not modified.
        iou_type: "bbox" or "segm"; the area of a detection is that of its box or of its mask.
        seen: the names of the classes that the training had; in OV-LVIS all but the rare ones.
        max_dets: detections considered per image, over all classes.

    Returns:
        In percent, nan where there is no ground truth: "AP", "AP50", "AP75", "APs", "APm", "APl",
        "APr", "APc", "APf" (of categories with this "frequency"); the six of
        :func:`open_vocabulary_ap`; "AP_per_class" and "AP50_per_class", dicts by class name.

    Raises:
        ValueError: unknown ``iou_type``.
        DatasetError: no LVIS-format ground truth, or an annotation or a detection belongs to an
            image that is not in it.
        InstallationError: faster-coco-eval is not installed.
    """
    if iou_type not in TASKS:
        raise ValueError(f"iou_type {iou_type!r}: choose 'bbox' or 'segm'")
    labels = [str(entry["name"]).strip() for entry in gt["categories"]]
    restricted, ids = restrict_ground_truth(gt, labels)
    check_images(detections, {image["id"] for image in gt["images"]}, "the ground truth")
    precision = federated_precision(restricted, detections, iou_type, ids, max_dets)
    names = {label.strip() for label in seen}
    ap50 = class_ap(at_iou(precision, IOU_THRESHOLDS, 0.5)[..., 0])
    return {
        **_summary(precision, list(_frequencies(gt).values())),
        **open_vocabulary_ap(precision[..., 0], IOU_THRESHOLDS, [x in names for x in labels]),
        "AP_per_class": dict(zip(labels, class_ap(precision[..., 0]).tolist(), strict=True)),
        "AP50_per_class": dict(zip(labels, ap50.tolist(), strict=True)),
    }


class OpenVocabularyLVISEvaluator(OpenVocabularyEvaluator):
    """AP of instance detection and segmentation on a LVIS-format data set.

    The data set must be registered by :func:`densedet.data.register_coco_format`; the ground truth
    is restricted to the classes of its vocabulary. Results are those of
    :func:`evaluate_lvis_detections` under "bbox" and "segm", of the classes "AP-X" and "AP50-X" for
    each label X. In OV-LVIS the unseen classes are the rare ones: "AP-unseen" is "APr".

    It stands in for Detectron2's ``LVISEvaluator``, which leaves the matching to the ``lvis``
    package and says nan where nothing was detected.

    Args:
        dataset_name: name in the catalogs.
        tasks: "bbox", "segm"; by default what the predictions have.
        distributed: gather the predictions of all processes; otherwise each evaluates its own.
        output_dir: folder for the predictions, ``lvis_instances_results.json``; None: not kept.
        max_dets_per_image: over all classes; LVIS takes 300.

    Raises:
        DatasetError: the data set has no vocabulary, or its annotation file is missing, broken or
            not LVIS's.
        ConfigError: an unknown task.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        *,
        distributed: bool = True,
        output_dir: str | None = None,
        max_dets_per_image: int = MAX_DETECTIONS,
    ) -> None:
        unknown = sorted(set(tasks or ()) - set(TASKS))
        if unknown:
            raise ConfigError(f"task {unknown[0]!r}: choose from {', '.join(TASKS)}")
        metadata = registered_metadata(dataset_name)
        data = checked_ground_truth(dataset_name)
        self._source = f"data set {dataset_name!r} ({metadata.json_file})"
        self.vocabulary = metadata.vocabulary
        restricted, self._category_ids = restrict_ground_truth(data, self.vocabulary.labels)
        frequencies = _frequencies(data)
        for entry in restricted["categories"]:
            entry["frequency"] = frequencies.get(entry["name"])
        self._gt = restricted
        check_lists(restricted, self._source)
        if "segm" in (tasks or ()):
            check_masks(restricted, self._source)
        self._tasks = tuple(tasks or ())
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets = max_dets_per_image
        self.reset()

    def reset(self) -> None:
        """Forget the images so far."""
        self._images: dict[Any, tuple[bool, list[dict[str, Any]]]] = {}

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Keep the "instances" of a batch of images; masks as run lengths. Each counts once."""
        for sample, output in zip(inputs, outputs, strict=True):
            instances = output["instances"].to("cpu")
            results = detection_records(instances, sample["image_id"])
            self._images[sample["image_id"]] = (instances.has("pred_masks"), results)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The figures, on the main process; an empty dict on the others.

        Raises:
            DatasetError: a prediction is for an image that the annotation file does not have.
            ConfigError: masks are wanted and there are none.
            OutputError: the predictions cannot be written.
        """
        images = self._images
        if self._distributed:
            images = dict(itertools.chain(*(part.items() for part in comm.gather(images))))
            if not comm.is_main_process():
                return {}
        found = images.values()
        detections = [self._with_category_id(d) for _, results in found for d in results]
        check_images(detections, {image["id"] for image in self._gt["images"]}, self._source)
        if self._output_dir is not None:
            write_text(Path(self._output_dir) / RESULTS_FILE, json.dumps(detections))
        if not detections:
            logger.warning("no detections at all: AP is 0 for every class with ground truth")
        with_masks = any(masks for masks, _ in found) and has_masks(self._gt, self._source)
        tasks = self._tasks or (TASKS if with_masks else TASKS[:1])
        if "segm" in tasks and not all("segmentation" in d for d in detections):
            raise ConfigError("the model gives no masks; leave 'segm' out of the evaluator's tasks")
        if "segm" in tasks:
            check_masks(self._gt, self._source)
        return {task: self._figures(detections, task) for task in tasks}

    def _with_category_id(self, detection: dict[str, Any]) -> dict[str, Any]:
        return {**detection, "category_id": self._category_ids[detection["category_id"]]}

    def _figures(self, detections: list[dict[str, Any]], task: str) -> dict[str, float]:
        seen = [c.label for c in self.vocabulary if c.seen]
        found = evaluate_lvis_detections(self._gt, detections, task, seen, max_dets=self._max_dets)
        results = {k: v for k, v in found.items() if not k.endswith("_per_class")}
        logger.info("%s: %s", task, ", ".join(f"{k} {v:.2f}" for k, v in results.items()))
        for key in ("AP", "AP50"):
            per_class = found[f"{key}_per_class"]
            results.update({f"{key}-{x}": per_class[x] for x in self.vocabulary.labels})
        return results


def _frequencies(gt: Mapping[str, Any]) -> dict[str, str | None]:
    """The frequency of each category; None for one that the evaluator added."""
    found = {str(entry["name"]).strip(): entry.get("frequency", "") for entry in gt["categories"]}
    for name, frequency in found.items():
        if frequency not in (None, *FREQUENCIES):
            raise DatasetError(
                f"category {name!r} of the ground truth has the frequency {frequency!r}, not one "
                f"of {', '.join(FREQUENCIES)}: give an LVIS-format file"
            )
    return found


def _summary(precision: np.ndarray, frequencies: Sequence[str | None]) -> dict[str, float]:
    """LVIS's nine AP figures, in percent; nan without ground truth."""
    groups = np.array([frequency or "" for frequency in frequencies])
    everything = precision[..., AREAS.index("all")]
    parts = {
        "AP": everything,
        "AP50": at_iou(everything, IOU_THRESHOLDS, 0.5),
        "AP75": at_iou(everything, IOU_THRESHOLDS, 0.75),
        **{f"AP{area[0]}": precision[..., AREAS.index(area)] for area in AREAS[1:]},
        **{f"AP{letter}": everything[:, :, groups == letter] for letter in FREQUENCIES},
    }
    return {name: mean_of_valid(class_ap(part)) for name, part in parts.items()}
