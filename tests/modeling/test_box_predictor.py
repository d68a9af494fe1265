import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from densedet.modeling.roi_heads import ScoreEnsemble
from densedet.vocabulary import Vocabulary

INF = math.inf


@pytest.fixture
def predictor(make_predictor, embedder, words):
    made = make_predictor(background_weight=0.6)
    made.set_classes(embedder(words), words.seen)
    return made


def proposals(labels):
    """Proposals 20 pixels wide and high; the objects are 2 pixels to the right."""
    found = Instances((64, 64))
    boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0]]).repeat(len(labels), 1)
    found.proposal_boxes = Boxes(boxes)
    found.gt_boxes = Boxes(boxes + torch.tensor([2.0, 0.0, 2.0, 0.0]))
    found.gt_classes = torch.tensor(labels, dtype=torch.int64)
    return found


def test_weighted_cross_entropy_by_hand(predictor):
    # three classes, the last unseen (masked), and background
    logits = torch.tensor(
        [
            [2.0, 0.0, -INF, 0.0],  # seen, weight 1
            [0.0, 1.0, -INF, 0.0],  # background, weight 0.6
            [0.0, 0.0, -INF, 3.0],  # unseen, weight 0
            [1.0, 0.0, -INF, 0.0],  # seen, weight 1
        ]
    )
    labels = torch.tensor([0, 3, 2, 1])
    expected = (
        math.log(math.exp(2) + 2) - 2 + 0.6 * math.log(2 + math.e) + math.log(math.e + 2)
    ) / 4  # regions, not the 2.6 of the weights
    loss = predictor.classification_loss(logits, labels)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_torch_agrees_up_to_the_divisor(predictor):
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 4
    weights = torch.tensor([1.0, 1.0, 0.0, 0.6])
    loss = predictor.classification_loss(logits, labels)
    mean = F.cross_entropy(logits, labels, weight=weights)
    torch.testing.assert_close(loss, mean * weights[labels].sum() / 20)


def test_regions_of_unseen_classes_weigh_nothing(predictor):
    logits = torch.tensor([[0.3, 0.1, -INF, 0.2]] * 3, requires_grad=True)
    loss = predictor.classification_loss(logits, torch.tensor([2, 2, 2]))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_background_without_weight(predictor):
    predictor.background_weight = 0.0
    logits = torch.tensor([[0.0, 0.0, -INF, 0.0]] * 2)
    loss = predictor.classification_loss(logits, torch.tensor([3, 0]))
    assert float(loss) == pytest.approx(math.log(3) / 2)


def test_no_region_is_a_loss_of_zero(predictor):
    predictor.train()
    x = torch.zeros(0, 24, requires_grad=True)
    with EventStorage():
        losses = predictor.losses(predictor(x), [proposals([])])
    assert {name: loss.item() for name, loss in losses.items()} == {
        "loss_cls": 0.0,
        "loss_box_reg": 0.0,
    }
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in predictor.parameters())


def test_losses_of_proposals(predictor):
    """Box loss: L1 of the foreground (unseen classes included) over all sampled regions."""
    logits = torch.tensor([[2.0, 0.0, -INF, 0.0], [0.0, 1.0, -INF, 0.0], [0.0, 0.0, -INF, 3.0]])
    deltas = torch.zeros(3, 4)
    with EventStorage():
        losses = predictor.losses((logits, deltas), [proposals([0]), proposals([3, 2])])
    expected = (math.log(math.exp(2) + 2) - 2 + 0.6 * math.log(2 + math.e)) / 3
    assert float(losses["loss_cls"]) == pytest.approx(expected, rel=1e-6)
    # 2 of 20 pixels, in units of 1 / 10 of the width: a delta of 1; two foreground regions of three
    assert float(losses["loss_box_reg"]) == pytest.approx(2 / 3, rel=1e-6)
    assert set(losses) == {"loss_cls", "loss_box_reg"}


def test_training_gives_masked_logits_and_evaluation_log_probabilities(predictor):
    x = torch.randn(5, 24)
    logits, deltas = predictor.train()(x)
    assert logits.shape == (5, 4) and deltas.shape == (5, 4)
    assert torch.isneginf(logits[:, 2]).all()
    assert logits[:, [0, 1, 3]].isfinite().all()
    scores, same = predictor.eval()(x)
    torch.testing.assert_close(same, deltas)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(5))
    unmasked = predictor.classifier(predictor.class_branch(x))
    torch.testing.assert_close(scores, unmasked.log_softmax(dim=1))


@pytest.mark.parametrize("class_relu", [True, False])
def test_branches(make_predictor, embedder, words, class_relu):
    made = make_predictor(class_relu=class_relu).train()
    made.set_classes(embedder(words), words.seen)
    linear = made.class_branch[0] if class_relu else made.class_branch
    x = torch.randn(7, 24)
    u = x @ linear.weight.T + linear.bias
    if class_relu:
        u = u.clamp(min=0)
    torch.testing.assert_close(made(x)[0], made.classifier(u))
    hidden = (x @ made.box_branch[0].weight.T + made.box_branch[0].bias).clamp(min=0)
    torch.testing.assert_close(made(x)[1], hidden @ made.bbox_pred.weight.T + made.bbox_pred.bias)


def test_features_with_height_and_width_are_flattened(make_predictor, embedder, words):
    made = make_predictor()
    made.set_classes(embedder(words), words.seen)
    x = torch.randn(3, 24)
    torch.testing.assert_close(made(x[:, :, None, None])[0], made(x)[0])


def test_ensemble_acts_in_evaluation_only(make_predictor, embedder, words):
    made = make_predictor(ensemble=ScoreEnsemble(0.1, 0.8, 75.0))
    made.set_classes(embedder(words), words.seen)
    x, dense = torch.randn(4, 24), torch.randn(4, 24)
    torch.testing.assert_close(made.train()(x, dense)[0], made(x)[0])
    made.eval()
    p = made(x)[0].exp()
    vectors = embedder(words).vectors
    cosines = F.normalize(dense, dim=1) @ vectors.T
    background = F.normalize(dense, dim=1) @ embedder(words).background
    cosines = torch.stack([cosines[:, :2].amax(1), cosines[:, 2], cosines[:, 3], background], dim=1)
    q = (75 * cosines).softmax(dim=1)
    a = torch.tensor([0.1, 0.1, 0.8, 0.1])
    torch.testing.assert_close(made(x, dense)[0].exp(), p ** (1 - a) * q**a, rtol=1e-4, atol=1e-9)


def test_inference_drops_background_and_suppresses_by_class(predictor):
    predictor.eval()
    predictor.test_score_thresh = 0.25
    predictor.test_nms_thresh = 0.4
    found = Instances((64, 64))
    found.proposal_boxes = Boxes(
        torch.tensor([[10.0, 10.0, 30.0, 30.0], [11.0, 10.0, 31.0, 30.0], [40.0, 40.0, 60.0, 60.0]])
    )
    scores = torch.tensor([[0.6, 0.3, 0.0, 0.1], [0.5, 0.0, 0.4, 0.1], [0.1, 0.0, 0.1, 0.8]]).log()
    (result,), _ = predictor.inference((scores, torch.zeros(3, 4)), [found])
    kept = sorted(zip(result.pred_classes.tolist(), result.scores.tolist(), strict=True))
    assert [k for k, _ in kept] == [0, 1, 2]
    assert [s for _, s in kept] == pytest.approx([0.6, 0.3, 0.4])


def test_no_weight_depends_on_the_classes(predictor, embedder):
    before = {name: tensor.clone() for name, tensor in predictor.state_dict().items()}
    assert set(before) == {
        "classifier.temperature",
        "class_branch.0.weight",
        "class_branch.0.bias",
        "box_branch.0.weight",
        "box_branch.0.bias",
        "bbox_pred.weight",
        "bbox_pred.bias",
    }
    assert before["bbox_pred.weight"].shape == (4, 24)
    others = Vocabulary.from_names(["one", "two", "three", "four", "five"])
    predictor.set_classes(embedder(others), others.seen)
    assert predictor.num_classes == 5
    assert predictor.eval()(torch.randn(2, 24))[0].shape == (2, 6)
    after = predictor.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
