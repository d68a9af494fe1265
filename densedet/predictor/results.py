"""Predictions as COCO results, with the user's labels."""

from collections.abc import Sequence
from typing import Any

from detectron2.structures import BoxMode, Instances
from torch import Tensor

from densedet.modeling.run_lengths import run_lengths
from densedet.vocabulary import Vocabulary


def coco_results(
    instances: Instances, image_id: int, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """COCO results of one image, each with the user's label.

    ``category_id`` is the index in the vocabulary plus one.
    """
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    results = []
    for row, (box, score, category) in enumerate(
        zip(boxes.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
    ):
        result = {
            **_labelled(image_id, category, vocabulary),
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        if instances.has("pred_masks"):
            result["segmentation"] = run_lengths(instances.pred_masks[row])
        results.append(result)
    return results


def segment_results(
    masks: Tensor, segments: Sequence[dict[str, Any]], image_id: int, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Segments of one image in the manner of COCO results, each with the user's label.

    Args:
        masks: (R, H, W) bool.
        segments: R, see `Prediction.segment_masks`.
    """
    results = []
    for mask, segment in zip(masks, segments, strict=True):
        result = {
            **_labelled(image_id, segment["category_id"], vocabulary),
            "isthing": bool(segment["isthing"]),
            "area": int(mask.sum()),
            "segmentation": run_lengths(mask),
        }
        if "score" in segment:
            result["score"] = round(float(segment["score"]), 5)
        results.append(result)
    return results


def _labelled(image_id: int, category: int, vocabulary: Vocabulary) -> dict[str, Any]:
    label = vocabulary.labels[category]
    return {"image_id": image_id, "category_id": category + 1, "label": label}
