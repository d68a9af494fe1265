"""Ensembling of segments with the dense map under their masks: against loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances

from densedet.clip import ClassEmbeddings
from densedet.modeling.mask_ensemble import MaskEnsemble
from densedet.modeling.pixel_scores import StoredScores
from densedet.modeling.roi_heads import CosineClassifier

STRIDE = 8
SEEN = (True, False, True)


def unit(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.fixture
def classifier():
    """Three classes in five dimensions, the second unseen; the first has two synonyms."""
    classifier = CosineClassifier(5, temperature=20.0)
    embeddings = ClassEmbeddings(unit(4, 5, seed=0), torch.tensor([0, 0, 1, 2]), torch.zeros(5))
    classifier.set_classes(embeddings, SEEN)
    return classifier


@pytest.fixture
def dense():
    """The map of an image of 32 x 24 pixels (width x height)."""
    return unit(3, 4, 5, seed=1).permute(2, 0, 1)


def dense_probabilities(vector, temperature=10.0):
    rows = unit(4, 5, seed=0).double().numpy()
    cosines = rows @ np.asarray(vector, dtype=np.float64) / np.linalg.norm(vector)
    scores = np.exp(temperature * np.array([cosines[:2].max(), cosines[2], cosines[3]]))
    return scores / scores.sum()


def mixed(p, q, index, seen=0.25, unseen=0.75):
    exponent = seen if SEEN[index] else unseen
    return p ** (1 - exponent) * q**exponent


def detections(boxes, masks, classes, scores):
    found = Instances((24, 32))
    found.pred_boxes = Boxes(torch.tensor(boxes).float().reshape(-1, 4))
    found.pred_masks = torch.stack(masks)[:, None] if masks else torch.zeros(0, 1, 28, 28)
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    found.scores = torch.tensor(scores)
    return found


def test_scores_are_mixed_with_the_cells_of_the_mask(classifier, dense):
    whole, left = torch.ones(28, 28), torch.zeros(28, 28)
    left[:, :14] = 1
    # cells (x0, y0, x1, y1), and which of them are covered
    found = detections(
        [[8, 8, 24, 24], [0, 0, 16, 8], [4, 0, 12, 8]],
        [whole, left, whole],
        [1, 0, 2],
        [0.9, 0.5, 0.25],
    )
    scores = MaskEnsemble(0.25, 0.75, 10.0).rescore(found, dense, STRIDE, classifier)
    cells = dense.double().numpy()
    pooled = [
        cells[:, 1:3, 1:3].mean(axis=(1, 2)),
        cells[:, 0, 0],
        (cells[:, 0, 0] + cells[:, 0, 1]) / 2,  # half of each
    ]
    expected = [
        mixed(score, dense_probabilities(vector)[k], k)
        for score, vector, k in zip([0.9, 0.5, 0.25], pooled, [1, 0, 2], strict=True)
    ]
    torch.testing.assert_close(scores.double(), torch.tensor(expected), rtol=1e-5, atol=1e-7)


def test_a_mask_without_a_cell_keeps_its_score(classifier, dense):
    found = detections(
        [[8, 8, 24, 24], [8, 8, 24, 24]],
        [torch.zeros(28, 28), torch.ones(28, 28)],
        [1, 1],
        [0.9, 0.0],
    )
    scores = MaskEnsemble(1.0, 1.0, 10.0).rescore(found, dense, STRIDE, classifier)
    assert scores[0] == 0.9 and 0 < scores[1] < 1


def test_no_detection(classifier, dense):
    found = detections([], [], [], [])
    scores = MaskEnsemble(0.5, 0.5, 10.0).rescore(found, dense, STRIDE, classifier)
    assert scores.shape == (0,)


def test_regions_of_a_semantic_map(classifier, dense):
    """Pixels of one winner share the mean of the cells, weighted by how much they cover."""
    logits = torch.randn(3, 21, 30, generator=torch.Generator().manual_seed(4))
    logits[2] -= 10  # wins nowhere
    ensemble = MaskEnsemble(0.25, 0.75, 10.0)
    found = ensemble.reclassify(StoredScores(logits), dense, STRIDE, classifier).full()
    assert found.shape == (3, 21, 30)
    cells, p = dense.double().numpy(), logits.double().softmax(0).numpy()
    winners = p.argmax(axis=0)
    q = {}
    for winner in (0, 1):
        pixels = np.argwhere(winners == winner)
        total = sum(cells[:, y // STRIDE, x // STRIDE] for y, x in pixels)
        q[winner] = dense_probabilities(total)
    for k, y, x in np.ndindex(3, 21, 30):
        expected = mixed(p[k, y, x], q[winners[y, x]][k], k)
        assert found[k, y, x].item() == pytest.approx(np.log(expected), abs=2e-4)


def test_exponents_of_zero_change_nothing(classifier, dense):
    ensemble = MaskEnsemble(0.0, 0.0, 10.0)
    logits = torch.randn(3, 24, 32, generator=torch.Generator().manual_seed(4))
    found = ensemble.reclassify(StoredScores(logits), dense, STRIDE, classifier).full()
    torch.testing.assert_close(found, logits.log_softmax(0))
    one = detections([[0, 0, 16, 16]], [torch.ones(28, 28)], [0], [0.7])
    scores = ensemble.rescore(one, dense, STRIDE, classifier)
    torch.testing.assert_close(scores, one.scores)


def test_an_exponent_of_one_leaves_the_decision_to_the_dense_map(classifier, dense):
    logits = torch.zeros(3, 24, 32)
    logits[0, :8], logits[1, 8:] = 5.0, 5.0
    ensemble = MaskEnsemble(1.0, 1.0, 10.0)
    found = ensemble.reclassify(StoredScores(logits), dense, STRIDE, classifier).full()
    for rows, cells in ((slice(0, 8), dense[:, :1]), (slice(8, 24), dense[:, 1:])):
        expected = dense_probabilities(cells.mean(dim=(1, 2)).numpy()).argmax()
        assert found[:, rows].argmax(dim=0).unique().tolist() == [expected]
