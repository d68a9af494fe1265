"""Average precision per class, and its means over seen, unseen and all classes."""

import math
from collections.abc import Sequence

import numpy as np


def class_ap(precision: np.ndarray) -> np.ndarray:
    """Average precision of each class, as COCO defines it (101-point interpolation).

    Args:
        precision: [T, R, K], precision at T IoU thresholds and R recall levels of K classes; -1
            where a class has no ground truth (crowds do not count).

    Returns:
        [K] in percent; nan for a class without ground truth.
    """
    valid = precision > -1
    counts = valid.sum(axis=(0, 1))
    sums = np.where(valid, precision, 0.0).sum(axis=(0, 1))
    return np.where(counts > 0, 100.0 * sums / np.maximum(counts, 1), np.nan)


def open_vocabulary_ap(
    precision: np.ndarray, iou_thresholds: Sequence[float] | np.ndarray, seen: Sequence[bool]
) -> dict[str, float]:
    """The figures of open-vocabulary detection: AP and AP50 over seen, unseen and all classes.

    Each is the unweighted mean over the classes that have ground truth (OVR-CNN, arXiv 2011.10678:
    base and novel AP50).

    Args:
        precision: [T, R, K], see :func:`class_ap`; all areas, the largest number of detections.
        iou_thresholds: [T], with 0.5 among them.
        seen: [K], whether the training had the class.

    Returns:
        "AP-seen", "AP-unseen", "AP-all", "AP50-seen", "AP50-unseen" and "AP50-all", in percent; nan
        if no class of the group has ground truth.

    Raises:
        ValueError: the lengths do not fit, or the thresholds lack 0.5.
    """
    if len(seen) != precision.shape[2]:
        raise ValueError(f"{len(seen)} seen flags for {precision.shape[2]} classes")
    flags = np.asarray(seen, dtype=bool)
    groups = {"seen": flags, "unseen": ~flags, "all": np.ones_like(flags)}
    metrics = {"AP": class_ap(precision), "AP50": class_ap(at_iou(precision, iou_thresholds, 0.5))}
    return {
        f"{metric}-{group}": mean_of_valid(values[members])
        for metric, values in metrics.items()
        for group, members in groups.items()
    }


def at_iou(
    precision: np.ndarray, iou_thresholds: Sequence[float] | np.ndarray, iou: float
) -> np.ndarray:
    """The part [1, ...] of a precision array [T, ...] at one IoU threshold.

    Raises:
        ValueError: that threshold was not evaluated.
    """
    hits = np.flatnonzero(np.isclose(iou_thresholds, iou))
    if len(hits) != 1:
        raise ValueError(f"IoU threshold {iou} is not among {list(iou_thresholds)}")
    return precision[hits]


def mean_of_valid(values: np.ndarray) -> float:
    """The mean of the entries that are not nan; nan if there is none."""
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if valid.size else math.nan
