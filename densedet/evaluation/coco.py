"""Open-vocabulary detection on COCO-format data: AP over seen, unseen and all classes."""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densedet.evaluation.evaluator import OpenVocabularyEvaluator
from densedet.evaluation.ground_truth import (
    check_images,
    check_masks,
    checked_ground_truth,
    coco_api,
    has_masks,
    registered_metadata,
    restrict_ground_truth,
)
from densedet.evaluation.open_vocabulary import (
    at_iou,
    class_ap,
    mean_of_valid,
    open_vocabulary_ap,
)
from densedet.modeling.run_lengths import detection_records

logger = logging.getLogger(__name__)


def evaluate_coco_detections(
    gt: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    seen: Collection[str],
    *,
    max_dets: int = 100,
    implementation: type[COCOeval] | None = None,
) -> dict[str, Any]:
    """COCO's metrics for detections, with the means over seen, unseen and all classes.

    Args:
        gt: COCO-format ground truth; every one of its categories is evaluated.
        detections: COCO's result format, with the category ids of ``gt``: "image_id",
            "category_id", "score", "bbox" (XYWH, pixels) and for "segm" "segmentation" (RLE). May
            be empty: the AP of a class with ground truth is then 0. Not modified.
        iou_type: "bbox" or "segm". For "segm" the boxes are left out, so that the area of a
            detection is that of its mask.
        seen: the names of the classes that the training had.
        max_dets: detections considered per image and class, the best ones.
        implementation: pycocotools' ``COCOeval`` or a class that stands in for it; the default is
            what Detectron2 uses (``densedet.compat.apply`` makes that faster-coco-eval where
            Detectron2's compiled operators are absent).

    Returns:
        In percent, nan where there is no ground truth: "AP", "AP50", "AP75", "APs", "APm", "APl";
        the six of :func:`open_vocabulary_ap`; "AP_per_class" and "AP50_per_class", dicts by class
        name.

    Raises:
        ValueError: unknown ``iou_type``.
        DatasetError: an annotation or a detection belongs to an image that is not in ``gt``.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type {iou_type!r}: choose 'bbox' or 'segm'")
    labels = [str(entry["name"]).strip() for entry in gt["categories"]]
    restricted, ids = restrict_ground_truth(gt, labels)
    check_images(detections, {image["id"] for image in gt["images"]}, "the ground truth")
    evaluation = _accumulate(
        coco_api(restricted),
        detections,
        iou_type,
        implementation or coco_evaluation.COCOeval_opt,
        [max_dets],
    )
    names = {label.strip() for label in seen}
    precision = _precision(evaluation, ids)
    thresholds = evaluation.params.iouThrs
    return {
        **_summary(evaluation),
        **open_vocabulary_ap(precision, thresholds, [label in names for label in labels]),
        "AP_per_class": dict(zip(labels, class_ap(precision).tolist(), strict=True)),
        "AP50_per_class": dict(
            zip(labels, class_ap(at_iou(precision, thresholds, 0.5)).tolist(), strict=True)
        ),
    }


class OpenVocabularyCOCOEvaluator(OpenVocabularyEvaluator, COCOEvaluator):
    """Detectron2's ``COCOEvaluator`` with AP over seen, unseen and all classes of the vocabulary.

    Beside Detectron2's own figures each task has the six of :func:`open_vocabulary_ap` and "AP50-X"
    for each label X, all in percent. The data set must be registered by
    :func:`densedet.data.register_coco_format`, whose metadata give the vocabulary. The ground truth
    is made from the annotations that were checked when the file was read. It is restricted to the
    classes of the vocabulary, and with ``annotated_only`` to the images that have one
    (:func:`restrict_ground_truth`). Without any detection the figures are 0 where there is ground
    truth (Detectron2 itself says nan).

    Args:
        dataset_name: name in the catalogs.
        tasks: "bbox", "segm"; by default what the predictions have.
        **kwargs: see ``detectron2.evaluation.COCOEvaluator``.

    Raises:
        DatasetError: the data set has no vocabulary, its annotation file is missing or broken, or
            it has objects without the masks of the task "segm"; at evaluation, a prediction is for
            an image that the file does not have.
    """

    def __init__(
        self, dataset_name: str, tasks: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        metadata = registered_metadata(dataset_name)
        data = checked_ground_truth(dataset_name)
        with _empty_data_set() as empty:  # of which Detectron2 reads the file
            super().__init__(empty, tuple(tasks) if tasks else None, **kwargs)
        self.vocabulary = metadata.vocabulary
        restricted, self._category_ids = restrict_ground_truth(
            data, self.vocabulary.labels, annotated_only=metadata.get("annotated_only", False)
        )
        self._known_images = {image["id"] for image in data["images"]}
        self._coco_api = coco_api(restricted)
        self._name = f"data set {dataset_name!r} ({metadata.json_file})"
        if "segm" in (tasks or ()):
            check_masks(restricted, self._name)
        # Detectron2 takes the class names in the order of the category ids, and maps the classes of
        # the predictions back to ids; its catalog entry itself stays as it is.
        names = [entry["name"] for entry in restricted["categories"]]
        ids = {category_id: i for i, category_id in enumerate(self._category_ids)}
        changed = {"thing_classes": names, "thing_dataset_id_to_contiguous_id": ids}
        self._metadata = Metadata(**{**vars(metadata), **changed})

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """As of ``COCOEvaluator``, with masks encoded from the part that they cover."""
        for sample, output in zip(inputs, outputs, strict=True):
            others = {name: found for name, found in output.items() if name != "instances"}
            count = len(self._predictions)
            super().process([sample], [others])
            if "instances" in output:
                found = detection_records(output["instances"].to("cpu"), sample["image_id"])
                if len(self._predictions) == count:
                    self._predictions.append({"image_id": sample["image_id"]})
                self._predictions[-1]["instances"] = found

    def _tasks_from_predictions(self, predictions: list[dict[str, Any]]) -> list[str]:
        tasks: list[str] = super()._tasks_from_predictions(predictions)
        if "segm" not in tasks:
            return tasks
        if not has_masks(self._coco_api.dataset, self._name):
            return ["bbox"]
        check_masks(self._coco_api.dataset, self._name)
        return tasks

    def _eval_predictions(
        self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None
    ) -> None:
        check_images(predictions, self._known_images, self._name)
        tested = [p for p in predictions if p["image_id"] in self._coco_api.imgs]
        super()._eval_predictions(tested, img_ids=img_ids)

    def _derive_coco_results(
        self,
        coco_eval: COCOeval | None,
        iou_type: str,
        class_names: list[str] | None = None,
    ) -> dict[str, float]:
        if coco_eval is None:
            logger.warning("no detections at all: AP is 0 for every class with ground truth")
            limits = self._max_dets_per_image
            coco_eval = _accumulate(self._coco_api, [], iou_type, COCOeval, limits)
            coco_eval.stats = np.array(list(_summary(coco_eval).values())) / 100
        results: dict[str, float] = super()._derive_coco_results(coco_eval, iou_type, class_names)
        precision = _precision(coco_eval, self._category_ids)
        thresholds = coco_eval.params.iouThrs
        ap50 = class_ap(at_iou(precision, thresholds, 0.5)).tolist()
        results.update(
            {f"AP50-{x}": ap for x, ap in zip(self.vocabulary.labels, ap50, strict=True)}
        )
        means = open_vocabulary_ap(precision, thresholds, self.vocabulary.seen)
        logger.info("%s: %s", iou_type, ", ".join(f"{k} {v:.2f}" for k, v in means.items()))
        results.update(means)
        return results


@contextlib.contextmanager
def _empty_data_set() -> Iterator[str]:
    """The name of a data set of nothing, for a while."""
    with tempfile.TemporaryDirectory(prefix="densedet_") as folder:
        path = Path(folder) / "empty.json"
        path.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
        MetadataCatalog.get(folder).set(json_file=str(path))
        try:
            yield folder
        finally:
            MetadataCatalog.remove(folder)


def _accumulate(
    gt: COCO,
    detections: Sequence[Mapping[str, Any]],
    iou_type: str,
    implementation: type[COCOeval],
    max_dets: list[int],
) -> COCOeval:
    """Run COCO's matching and accumulation; nothing is printed."""
    dropped = {"bbox"} if iou_type == "segm" else set()
    results = [{k: v for k, v in d.items() if k not in dropped} for d in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes does not take an empty list.
        found = gt.loadRes(results) if results else coco_api({**gt.dataset, "annotations": []})
        evaluation = implementation(gt, found, iou_type)
        evaluation.params.maxDets = max_dets
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _precision(evaluation: COCOeval, category_ids: Sequence[int]) -> np.ndarray:
    """[T, R, K] for all areas and the most detections, classes in the order of ``category_ids``."""
    position = {category_id: i for i, category_id in enumerate(evaluation.params.catIds)}
    order = [position[category_id] for category_id in category_ids]
    precision: np.ndarray = evaluation.eval["precision"][:, :, order, 0, -1]
    return precision


def _summary(evaluation: COCOeval) -> dict[str, float]:
    """COCO's six AP figures, in percent; nan without ground truth."""
    precision = evaluation.eval["precision"][..., -1]
    thresholds = evaluation.params.iouThrs
    parts = {
        "AP": precision[..., 0],
        "AP50": at_iou(precision, thresholds, 0.5)[..., 0],
        "AP75": at_iou(precision, thresholds, 0.75)[..., 0],
        "APs": precision[..., 1],
        "APm": precision[..., 2],
        "APl": precision[..., 3],
    }
    return {name: mean_of_valid(class_ap(part)) for name, part in parts.items()}
