"""On a CUDA device a predictor says what it says on the CPU."""

import pytest
import torch

from densedet.predictor import Predictor
from densedet.vocabulary import Vocabulary

pytestmark = pytest.mark.cuda
WORDS = "red star;blue ring;green ball"


@pytest.mark.parametrize(
    ("precision", "least"), [("fp32", 0.9999), ("bf16", 0.99), ("fp16", 0.999)]
)
def test_dense_features_and_predictions(config, weights, predictor, image, precision, least):
    fast = Predictor(config, weights, device="cuda", precision=precision)
    exact, dense = predictor.dense_features(image), fast.dense_features(image)
    assert dense.device.type == "cpu" and dense.dtype == torch.float32
    assert (dense * exact).sum(dim=0).min() > least
    found, expected = (p.with_vocabulary(WORDS).predict(image).instances for p in (fast, predictor))
    assert found.pred_boxes.device.type == "cpu" and found.pred_masks.device.type == "cpu"
    assert found.scores[0].item() == pytest.approx(expected.scores[0].item(), abs=0.05)


def test_segments_and_regions(panoptic, panoptic_source, image):
    fast = Predictor(*panoptic_source, device="cuda")
    words = Vocabulary.parse(WORDS).with_stuff(Vocabulary.parse("grass;sand"))
    one, other = (p.with_vocabulary(words).predict(image) for p in (fast, panoptic))
    assert one.panoptic.device.type == one.semantic.device.type == "cpu"
    assert (one.semantic == other.semantic).float().mean() > 0.99
    boxes = torch.tensor([[8.0, 8.0, 72.0, 64.0]])
    regions, expected = (p.region_features(boxes, image=image) for p in (fast, panoptic))
    torch.testing.assert_close(regions, expected, atol=1e-3, rtol=0)
    heat, same = (p.similarity("red star", image) for p in (fast, panoptic))
    torch.testing.assert_close(heat, same, atol=1e-3, rtol=0)
