"""Semantic IoU from a confusion matrix: over all, seen and unseen classes."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from densedet.evaluation.open_vocabulary import mean_of_valid

MeanOver = Literal["truth", "either"]


def count_confusion(
    truth: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Count the pixels of each class by what was predicted for them.

    Args:
        truth: [H, W] integers, the class of each pixel; those with ``ignore_label`` count nowhere,
            whatever was predicted there.
        prediction: [H, W] integers, the predicted class; ``num_classes`` where there is none.
        num_classes: K.
        ignore_label: any integer, usually none of the classes; it need not fit ``truth.dtype``.

    Returns:
        [K, K + 1] int64: true class by predicted class, the last column for "none".

    Raises:
        ValueError: the shapes differ, or a label is no class.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    counted = truth != ignore_label
    rows = truth[counted].astype(np.int64)
    columns = prediction[counted].astype(np.int64)
    for name, labels, limit in (
        ("truth", rows, num_classes),
        ("prediction", columns, 1 + num_classes),
    ):
        if labels.size and not 0 <= labels.min() <= labels.max() < limit:
            wrong = labels[(labels < 0) | (labels >= limit)][0]
            raise ValueError(f"the {name} has the label {wrong}, which is no class below {limit}")
    shape = num_classes, num_classes + 1
    counts = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1])
    return counts.reshape(shape).astype(np.int64, copy=False)


def class_iou(confusion: np.ndarray, mean_over: MeanOver) -> np.ndarray:
    """Intersection over union of each class.

    Args:
        confusion: [K, K + 1], see :func:`count_confusion`.
        mean_over: the classes that have an IoU: "truth", those that occur in the truth; "either",
            those that occur in the truth or the prediction, so that one which is only predicted
            has 0.

    Returns:
        [K] in percent; nan for the other classes.

    Raises:
        ValueError: unknown ``mean_over``.
    """
    if mean_over not in get_args(MeanOver):
        raise ValueError(f"mean_over={mean_over!r}: choose from {', '.join(get_args(MeanOver))}")
    right, true, predicted = _totals(confusion)
    union = true + predicted - right
    return _percent(right, union, (true if mean_over == "truth" else union) > 0)


def class_accuracy(confusion: np.ndarray) -> np.ndarray:
    """The share of the pixels of each class that have it predicted.

    Args:
        confusion: [K, K + 1], see :func:`count_confusion`.

    Returns:
        [K] in percent; nan for a class that does not occur in the truth.
    """
    right, true, _ = _totals(confusion)
    return _percent(right, true, true > 0)


def iou_means(confusion: np.ndarray, seen: Sequence[bool], mean_over: MeanOver) -> dict[str, float]:
    """Mean IoU over all, seen and unseen classes.

    Args:
        confusion: [K, K + 1], see :func:`count_confusion`.
        seen: [K], whether the training had the class.
        mean_over: see :func:`class_iou`.

    Returns:
        "mIoU", "mIoU-seen", "mIoU-unseen" and the harmonic mean of the last two, "hIoU", in
        percent; nan where no class of the group has an IoU.

    Raises:
        ValueError: unknown ``mean_over``, or the number of flags is not that of the classes.
    """
    if len(seen) != len(confusion):
        raise ValueError(f"{len(seen)} seen flags for {len(confusion)} classes")
    iou, flags = class_iou(confusion, mean_over), np.asarray(seen, dtype=bool)
    both = mean_of_valid(iou[flags]), mean_of_valid(iou[~flags])
    return {
        "mIoU": mean_of_valid(iou),
        "mIoU-seen": both[0],
        "mIoU-unseen": both[1],
        "hIoU": _harmonic_mean(*both),
    }


def semantic_figures(
    confusion: np.ndarray, labels: Sequence[str], seen: Sequence[bool], mean_over: MeanOver
) -> dict[str, float]:
    """All figures of semantic segmentation, in percent; nan where there is nothing to measure.

    Args:
        confusion: [K, K + 1], see :func:`count_confusion`.
        labels: [K] names of the classes.
        seen: [K], whether the training had the class.
        mean_over: see :func:`class_iou`.

    Returns:
        "mIoU", "mIoU-seen", "mIoU-unseen" and "hIoU" (:func:`iou_means`), and the same four for
        either choice of ``mean_over`` with "-truth" and "-either" behind their names; "fwIoU", the
        mean of the IoU weighted by the pixels of the classes; "mACC", the mean of the class
        accuracies over the classes in the truth; "pACC", the share of all pixels that is right;
        and for each label X "IoU-X" and "ACC-X". Where every pixel has a prediction, "mIoU" with
        "truth", "fwIoU", "mACC" and "pACC" are those of Detectron2's ``SemSegEvaluator``.

    Raises:
        ValueError: unknown ``mean_over``, or lengths that do not fit.
    """
    iou, accuracy = class_iou(confusion, mean_over), class_accuracy(confusion)
    right, true, _ = _totals(confusion)
    occurs, pixels = true > 0, true.sum()
    figures = {
        **iou_means(confusion, seen, mean_over),
        "fwIoU": float(iou[occurs] @ true[occurs] / pixels) if pixels else math.nan,
        "mACC": mean_of_valid(accuracy),
        "pACC": float(100 * right.sum() / pixels) if pixels else math.nan,
    }
    for choice in get_args(MeanOver):
        means = iou_means(confusion, seen, choice)
        figures.update({f"{name}-{choice}": value for name, value in means.items()})
    for name, values in (("IoU", iou), ("ACC", accuracy)):
        pairs = zip(labels, values.tolist(), strict=True)
        figures.update({f"{name}-{label}": value for label, value in pairs})
    return figures


def _totals(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of each class that are right, that are its own, and that were predicted to be."""
    return confusion.diagonal(), confusion.sum(axis=1), confusion[:, :-1].sum(axis=0)


def _percent(part: np.ndarray, whole: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.where(valid, 100 * part / np.maximum(whole, 1), np.nan)


def _harmonic_mean(a: float, b: float) -> float:
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)
