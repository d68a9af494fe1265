"""AP per class and its means, on precision arrays written by hand."""

import math

import numpy as np
import pytest

from densedet.evaluation import class_ap, open_vocabulary_ap


@pytest.fixture
def precision() -> np.ndarray:
    """[T=2, R=2, K=4]; class 2 has no ground truth."""
    values = np.array([[0.8, 0.2, -1, 1.0], [0.4, 0.0, -1, 0.5]])
    return np.repeat(values[:, None], 2, axis=1)


def test_class_ap(precision: np.ndarray) -> None:
    np.testing.assert_allclose(class_ap(precision), [60, 10, np.nan, 75])


def test_means_leave_out_classes_without_ground_truth(precision: np.ndarray) -> None:
    found = open_vocabulary_ap(precision, [0.5, 0.75], [True, False, False, True])
    assert found == pytest.approx(
        {
            "AP-seen": 67.5,
            "AP-unseen": 10,
            "AP-all": 145 / 3,
            "AP50-seen": 90,
            "AP50-unseen": 20,
            "AP50-all": 200 / 3,
        }
    )


def test_a_group_without_ground_truth_is_nan(precision: np.ndarray) -> None:
    found = open_vocabulary_ap(precision, [0.5, 0.75], [True, True, False, True])
    assert math.isnan(found["AP50-unseen"]) and math.isnan(found["AP-unseen"])
    assert found["AP50-seen"] == found["AP50-all"] == pytest.approx(200 / 3)


def test_wrong_lengths(precision: np.ndarray) -> None:
    with pytest.raises(ValueError, match="3 seen flags for 4 classes"):
        open_vocabulary_ap(precision, [0.5, 0.75], [True] * 3)
    with pytest.raises(ValueError, match="0.5 is not among"):
        open_vocabulary_ap(precision, [0.6, 0.75], [True] * 4)
