"""Semantic IoU against a count pixel by pixel."""

import math

import numpy as np
import pytest

from densedet.evaluation.semantic_iou import (
    class_accuracy,
    class_iou,
    count_confusion,
    iou_means,
    semantic_figures,
)


def random_maps(seed, num_classes, ignore_label, dtype, images=3):
    """Truth and prediction of some images; half of the classes at most are in the truth."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(images):
        shape = tuple(rng.integers(5, 14, 2))
        truth = rng.integers(0, (num_classes + 1) // 2, shape)
        predicted = np.where(
            rng.random(shape) < 0.6, truth, rng.integers(0, num_classes + 1, shape)
        )
        truth[rng.random(shape) < 0.2] = ignore_label
        pairs.append((truth.astype(dtype), predicted))
    return pairs


def count_pixels(pairs, num_classes, ignore_label):
    """The oracle: for each class [right, true, predicted], by looking at every pixel."""
    counts = [[0, 0, 0] for _ in range(num_classes)]
    for truth, predicted in pairs:
        for t, p in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
            if t == ignore_label:
                continue
            counts[t][1] += 1
            if p < num_classes:
                counts[p][2] += 1
            if t == p:
                counts[t][0] += 1
    return counts


def mean(values):
    return sum(values) / len(values) if values else math.nan


CASES = [
    (5, 255, np.uint8),
    (150, 255, np.uint8),
    (255, 255, np.uint8),
    (847, 65535, np.uint16),
    (3000, 65535, np.uint16),
    (6, -1, np.int64),
    (4, 7, np.int32),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("num_classes", "ignore_label", "dtype"), CASES)
def test_equal_to_a_count_of_every_pixel(num_classes, ignore_label, dtype, seed):
    pairs = random_maps(seed, num_classes, ignore_label, dtype)
    parts = [count_confusion(t, p, num_classes, ignore_label) for t, p in pairs]
    confusion = np.sum(parts, axis=0)
    assert confusion.shape == (num_classes, num_classes + 1) and confusion.dtype == np.int64

    counts = count_pixels(pairs, num_classes, ignore_label)
    labels = [f"c{i}" for i in range(num_classes)]
    seen = [i % 3 > 0 for i in range(num_classes)]
    figures = {
        choice: semantic_figures(confusion, labels, seen, choice) for choice in ("truth", "either")
    }
    pixels = sum(true for _, true, _ in counts)
    assert pixels == confusion.sum() > 0
    iou = {"truth": {}, "either": {}}
    for i, (right, true, predicted) in enumerate(counts):
        union = true + predicted - right
        if true:
            iou["truth"][i] = 100 * right / union
            for found in figures.values():
                assert found[f"ACC-c{i}"] == pytest.approx(100 * right / true, abs=1e-12)
        if union:
            iou["either"][i] = 100 * right / union
    assert len(iou["truth"]) < len(iou["either"]), "some classes are only predicted"
    for choice, found in figures.items():
        for i in range(num_classes):
            expected = iou[choice].get(i, math.nan)
            assert found[f"IoU-c{i}"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
            assert math.isnan(found[f"ACC-c{i}"]) is (counts[i][1] == 0)
        assert found["fwIoU"] == pytest.approx(
            sum(value * counts[i][1] for i, value in iou["truth"].items()) / pixels, abs=1e-10
        )
        accuracies = [100 * right / true for right, true, _ in counts if true]
        assert found["mACC"] == pytest.approx(mean(accuracies), abs=1e-10)
        hits = sum(right for right, _, _ in counts)
        assert found["pACC"] == pytest.approx(100 * hits / pixels, abs=1e-10)
        for other in ("truth", "either"):
            values = iou[other]
            s = mean([value for i, value in values.items() if seen[i]])
            u = mean([value for i, value in values.items() if not seen[i]])
            expected = {
                "mIoU": mean(list(values.values())),
                "mIoU-seen": s,
                "mIoU-unseen": u,
                "hIoU": 2 * s * u / (s + u),
            }
            for name, value in expected.items():
                assert found[f"{name}-{other}"] == pytest.approx(value, abs=1e-10)
                if other == choice:
                    assert found[name] == found[f"{name}-{other}"]


def test_rows_are_the_truth_and_the_last_column_is_no_class():
    truth = np.array([[0, 0, 1], [9, 9, 2]], dtype=np.uint8)
    predicted = np.array([[0, 3, 2], [0, 3, 2]])
    confusion = count_confusion(truth, predicted, 3, 9)
    assert confusion.tolist() == [[1, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("ignore_label", [255, 65535, -1])
def test_an_ignored_label_that_is_not_there(ignore_label):
    truth = np.array([[0, 1]], dtype=np.uint8)
    assert count_confusion(truth, truth, 2, ignore_label).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_class_that_is_absent():
    # class 1 is only predicted, class 2 is neither in the truth nor predicted
    confusion = np.array([[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert class_iou(confusion, "truth").tolist()[0] == 75
    assert np.isnan(class_iou(confusion, "truth")).tolist() == [False, True, True]
    assert class_iou(confusion, "either").tolist()[:2] == [75, 0]
    assert np.isnan(class_iou(confusion, "either")).tolist() == [False, False, True]
    assert np.isnan(class_accuracy(confusion)).tolist() == [False, True, True]
    means = {
        choice: iou_means(confusion, [True, False, False], choice) for choice in ("truth", "either")
    }
    assert means["either"] == {"mIoU": 37.5, "mIoU-seen": 75, "mIoU-unseen": 0, "hIoU": 0}
    assert means["truth"]["mIoU"] == means["truth"]["mIoU-seen"] == 75
    assert math.isnan(means["truth"]["mIoU-unseen"]) and math.isnan(means["truth"]["hIoU"])


def test_nothing_right_is_zero_and_nothing_counted_is_nan():
    wrong = np.array([[0, 4, 0], [4, 0, 0]])
    assert iou_means(wrong, [True, False], "truth") == dict.fromkeys(
        ("mIoU", "mIoU-seen", "mIoU-unseen", "hIoU"), 0
    )
    nothing = semantic_figures(np.zeros((2, 3), dtype=np.int64), "ab", [True, False], "either")
    assert all(math.isnan(value) for value in nothing.values())


def test_whole_classes_of_many_pixels_do_not_overflow():
    confusion = np.array([[3 * 10**12, 10**12, 0], [0, 4 * 10**12, 0]])
    figures = semantic_figures(confusion, "ab", [True, False], "truth")
    assert (figures["IoU-a"], figures["IoU-b"], figures["pACC"]) == (75, 80, 87.5)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([[0, 4]], [[0, 0]], "the truth has the label 4, which is no class below 4"),
        ([[0, -1]], [[0, 0]], "the truth has the label -1"),
        ([[0, 1]], [[5, 0]], "the prediction has the label 5, which is no class below 5"),
        ([[0, 1]], [[-2, 0]], "the prediction has the label -2"),
        ([[0, 1]], [[0], [1]], r"truth \(1, 2\) and prediction \(2, 1\) differ in shape"),
    ],
)
def test_what_is_refused(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        count_confusion(np.array(truth), np.array(predicted), 4, 255)


def test_what_does_not_fit_is_refused():
    confusion = np.eye(2, 3, dtype=np.int64)
    with pytest.raises(ValueError, match="mean_over='all': choose from truth, either"):
        class_iou(confusion, "all")
    with pytest.raises(ValueError, match="3 seen flags for 2 classes"):
        iou_means(confusion, [True] * 3, "truth")
    with pytest.raises(ValueError):
        semantic_figures(confusion, ["a"], [True] * 2, "truth")
