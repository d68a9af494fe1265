"""The user's API: words and images in, labelled boxes, masks, maps and embeddings out."""

from densedet.predictor.prediction import NONE, NONE_LABEL, Prediction
from densedet.predictor.predictor import ImageLike, Predictor
from densedet.predictor.results import coco_results, segment_results
from densedet.tasks import Task

__all__ = [
    "NONE",
    "NONE_LABEL",
    "ImageLike",
    "Prediction",
    "Predictor",
    "Task",
    "coco_results",
    "segment_results",
]
