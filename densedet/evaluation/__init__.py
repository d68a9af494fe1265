"""Metrics of open vocabularies: AP, panoptic quality, IoU, zero-shot and region classification.

The names below are looked up when they are first used: zero-shot classification needs no
Detectron2.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densedet.evaluation.coco import OpenVocabularyCOCOEvaluator, evaluate_coco_detections
    from densedet.evaluation.ground_truth import restrict_ground_truth
    from densedet.evaluation.lvis import OpenVocabularyLVISEvaluator, evaluate_lvis_detections
    from densedet.evaluation.open_vocabulary import class_ap, open_vocabulary_ap
    from densedet.evaluation.panoptic import OpenVocabularyPanopticEvaluator
    from densedet.evaluation.region_classification import RegionClassificationEvaluator
    from densedet.evaluation.semantic import OpenVocabularySemanticEvaluator

__all__ = [
    "OpenVocabularyCOCOEvaluator",
    "OpenVocabularySemanticEvaluator",
    "OpenVocabularyLVISEvaluator",
    "OpenVocabularyPanopticEvaluator",
    "RegionClassificationEvaluator",
    "class_ap",
    "evaluate_coco_detections",
    "evaluate_lvis_detections",
    "open_vocabulary_ap",
    "restrict_ground_truth",
]

_MODULES = {
    "OpenVocabularyCOCOEvaluator": "coco",
    "OpenVocabularySemanticEvaluator": "semantic",
    "OpenVocabularyLVISEvaluator": "lvis",
    "OpenVocabularyPanopticEvaluator": "panoptic",
    "RegionClassificationEvaluator": "region_classification",
    "class_ap": "open_vocabulary",
    "evaluate_coco_detections": "coco",
    "evaluate_lvis_detections": "lvis",
    "open_vocabulary_ap": "open_vocabulary",
    "restrict_ground_truth": "ground_truth",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
