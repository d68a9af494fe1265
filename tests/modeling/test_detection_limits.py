"""Fewer detections: what is left is what the whole result has within the limits."""

import pytest
import torch
from detectron2.structures import Instances

from densedet.modeling.detection_limits import DetectionLimits


def test_limits_select_the_best_that_reach_the_score():
    scores = torch.tensor([0.1, 0.5, 0.3, 0.05, 0.04])
    found = Instances((8, 8), scores=scores)
    assert DetectionLimits(0.05).select(found).scores.tolist() == pytest.approx(
        [0.5, 0.3, 0.1, 0.05]
    )
    assert DetectionLimits(0.0, top_k=2).select(found).scores.tolist() == pytest.approx([0.5, 0.3])


@pytest.mark.parametrize("values", [{"least_score": 1.1}, {"least_score": 0.1, "top_k": 0}])
def test_limits_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="least_score=1.1|top_k=0"):
        DetectionLimits(**values)
