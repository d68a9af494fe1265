"""Fewer detections for one call: what is dropped gets no mask and is pasted nowhere."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, RetinaNet
from detectron2.structures import Instances
from torch import Tensor, nn
from torchvision.ops import nms

from densedet.modeling.roi_heads import OpenVocabularyBoxPredictor


@dataclass(frozen=True)
class DetectionLimits:
    """Which detections of an image are wanted.

    Attributes:
        least_score: in 0..1, in place of the threshold of the config.
        top_k: the most detections, the best first; None leaves the number of the config.
        agnostic_nms: a box suppresses those of other classes too, so that a region is reported
            once, with its best class.

    Raises:
        ValueError: a score outside 0..1, or ``top_k`` below 1.
    """

    least_score: float
    top_k: int | None = None
    agnostic_nms: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.least_score <= 1.0:
            raise ValueError(f"least_score={self.least_score} must lie in 0..1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None for the config's")

    @property
    def threshold(self) -> float:
        """What Detectron2 compares with: scores are to be greater than this."""
        below = np.nextafter(np.float32(self.least_score), np.float32(-math.inf))
        return max(0.0, float(below))

    def select(self, instances: Instances) -> Instances:
        """The instances of an image that are within the limits, the best first."""
        order = instances.scores.argsort(descending=True, stable=True)
        order = order[instances.scores[order] > self.threshold]
        return instances[order[: self.top_k]]


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an object have another attribute, or method, for a while."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def limited(model: nn.Module, limits: DetectionLimits) -> Iterator[None]:
    """Let a Detectron2 detector find no more than this meanwhile; another model is left alone.

    Not safe for threads by itself: whoever calls holds the model.
    """
    with ExitStack() as stack:
        for owner, name, value in _changes(limits, model):
            stack.enter_context(replaced(owner, name, value))
        yield


Change = tuple[nn.Module, str, Any]


def _changes(limits: DetectionLimits, model: nn.Module) -> Iterator[Change]:
    least = limits.least_score
    if isinstance(model, PanopticFPN):  # what it merges, and is dropped later, leaves no stuff
        least = min(least, model.combine_instances_score_thresh)
    if getattr(model, "mask_ensemble", None) is not None:  # it changes the scores of the boxes
        yield model, "limits", replace(limits, least_score=least)
        yield from _nms_alone(limits, model)
        return
    for owner, most, _ in _detectors(model):
        yield owner, "test_score_thresh", DetectionLimits(least).threshold
        if limits.top_k is not None:
            yield owner, most, limits.top_k
    yield from _nms_alone(limits, model)


def _nms_alone(limits: DetectionLimits, model: nn.Module) -> Iterator[Change]:
    if not limits.agnostic_nms:
        return
    for owner, most, method in _detectors(model):
        # read when the change is made: the number may be that of the limits
        count, overlap = getattr(owner, most), owner.test_nms_thresh
        yield owner, method, _suppressing(getattr(owner, method), float(overlap), int(count))
        yield owner, "test_nms_thresh", 1.0  # nothing overlaps by more than all
        yield owner, most, torch.iinfo(torch.int64).max
        if isinstance(owner, OpenVocabularyBoxPredictor):
            yield owner, "predict_probs", _best_class(owner.predict_probs)


def _detectors(model: Any) -> Iterator[tuple[Any, str, str]]:
    """What suppresses boxes, its attribute with the most detections, and its method."""
    if isinstance(model, RetinaNet):
        yield model, "max_detections_per_image", "inference_single_image"
    elif isinstance(model, GeneralizedRCNN):
        predictors = model.roi_heads.box_predictor
        for owner in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            yield owner, "test_topk_per_image", "inference"


def _suppressing(method: Callable[..., Any], overlap: float, most: int) -> Callable[..., Any]:
    """A method whose result has one detection of those that overlap, whatever their classes."""

    def kept(instances: Instances) -> Tensor:
        rows: Tensor = nms(instances.pred_boxes.tensor, instances.scores, overlap)
        return rows[:most]

    def inference(*args: Any) -> Any:
        found = method(*args)
        if isinstance(found, Instances):
            return found[kept(found)]
        pairs = [(instances, rows, kept(instances)) for instances, rows in zip(*found, strict=True)]
        return [found[k] for found, _, k in pairs], [rows[k] for _, rows, k in pairs]

    return inference


def _best_class(method: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Probabilities (R, K + 1), zero but for the best class and the background.

    Where all classes of a region share its box, the others would be suppressed anyway.
    """

    def predict_probs(*args: Any) -> tuple[Tensor, ...]:
        return tuple(_without_others(probs) for probs in method(*args))

    return predict_probs


def _without_others(probs: Tensor) -> Tensor:
    classes = probs[:, :-1]
    best = classes.argmax(dim=1, keepdim=True)
    alone = torch.zeros_like(classes).scatter_(1, best, classes.gather(1, best))
    return torch.cat([alone, probs[:, -1:]], dim=1)
