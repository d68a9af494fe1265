import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import roi_align

from densedet.modeling.roi_heads import OpenVocabularyROIHeads, ScoreEnsemble
from densedet.modeling.roi_heads import roi_heads as module
from densedet.vocabulary import Vocabulary

SIZE = (64, 64)
BOXES = torch.tensor([[2.0, 3.0, 30.0, 41.0], [20.0, 10.0, 60.0, 62.0], [5.0, 33.0, 49.0, 50.0]])


@pytest.fixture
def make_heads(make_rcnn, embedder, words):
    def make(**kwargs):
        heads = make_rcnn("b16", **kwargs).roi_heads
        heads.set_classes(embedder(words), words.seen)
        return heads

    return make


def maps(batch=1):
    generator = torch.Generator().manual_seed(0)
    levels = {
        f"p{i}": torch.randn(batch, 32, 64 // 2**i, 64 // 2**i, generator=generator)
        for i in range(2, 6)
    }
    dense = torch.randn(batch, 24, 4, 4, generator=generator)
    return {**levels, "vlm": F.normalize(dense, dim=1)}


def proposals(boxes=BOXES):
    found = Instances(SIZE)
    found.proposal_boxes = Boxes(boxes)
    found.objectness_logits = torch.zeros(len(boxes))
    return found


def targets(boxes, classes):
    found = Instances(SIZE)
    found.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    found.gt_classes = torch.tensor(classes, dtype=torch.int64)
    masks = torch.zeros(len(boxes), *SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    found.gt_masks = BitMasks(masks)
    return found


def test_registered_under_its_class_name():
    assert ROI_HEADS_REGISTRY.get("OpenVocabularyROIHeads") is OpenVocabularyROIHeads


def move_boxes(heads, pixels_per_width):
    """Let every box be regressed to the right by a part of its width."""
    with torch.no_grad():
        heads.box_predictor.bbox_pred.weight.zero_()
        heads.box_predictor.bbox_pred.bias.copy_(torch.tensor([10.0 * pixels_per_width, 0, 0, 0]))


def test_the_dense_map_is_pooled_over_the_proposals(make_heads, monkeypatch):
    seen = []
    pool = module.pool_boxes
    monkeypatch.setattr(module, "pool_boxes", lambda *a: seen.append(a) or pool(*a))
    heads = make_heads().eval()
    move_boxes(heads, 0.1)
    features, found = maps(2), [proposals(), proposals(BOXES[1:])]
    heads(None, features, found)
    ((dense, boxes, stride),) = seen
    assert dense is features["vlm"] and stride == 16
    assert torch.equal(boxes[0], BOXES) and torch.equal(boxes[1], BOXES[1:])


def test_scores_by_hand(make_heads, embedder, words):
    """Boxes are regressed away from the proposals; the scores are of the proposals."""
    heads = make_heads(
        ensemble=ScoreEnsemble(0.1, 0.8, 75.0), test_score_thresh=-1.0, test_nms_thresh=1.0
    ).eval()
    move_boxes(heads, 0.1)
    features = maps()
    (result,), _ = heads(None, features, [proposals()])
    assert len(result) == 3 * 3  # every proposal with every class

    levels = [features[f"p{i}"] for i in range(2, 6)]
    hidden = heads.box_head(heads.box_pooler(levels, [Boxes(BOXES)]))
    p = heads.box_predictor(hidden)[0].exp()
    rois = torch.cat([torch.zeros(3, 1), BOXES], dim=1)
    f = F.normalize(roi_align(features["vlm"], rois, 1, 1 / 16, -1, True)[:, :, 0, 0], dim=1)
    made = embedder(words)
    cosines = f @ torch.cat([made.vectors, made.background[None]]).T
    cosines = torch.cat([cosines[:, :2].amax(dim=1, keepdim=True), cosines[:, 2:]], dim=1)
    q = (75 * cosines).softmax(dim=1)
    a = torch.tensor([0.1, 0.1, 0.8])
    expected = p[:, :3] ** (1 - a) * q[:, :3] ** a

    moved = BOXES + 0.1 * (BOXES[:, 2] - BOXES[:, 0])[:, None] * torch.tensor([1.0, 0, 1, 0])
    moved = moved.clamp(max=64)
    for row in range(3):
        for k in range(3):
            same_box = (result.pred_boxes.tensor - moved[row]).abs().amax(dim=1) < 1e-3
            (score,) = result.scores[same_box & (result.pred_classes == k)].tolist()
            assert score == pytest.approx(expected[row, k].item(), rel=1e-3)


def test_without_an_ensemble_no_dense_map_is_needed(make_heads):
    heads = make_heads(test_score_thresh=-1.0, test_nms_thresh=1.0).eval()
    heads.box_predictor.ensemble = None
    features = maps()
    del features["vlm"]
    (result,), _ = heads(None, features, [proposals()])
    levels = [features[f"p{i}"] for i in range(2, 6)]
    p = heads.box_predictor(heads.box_head(heads.box_pooler(levels, [Boxes(BOXES)])))[0].exp()
    torch.testing.assert_close(result.scores.sort().values, p[:, :3].flatten().sort().values)


def test_an_image_without_proposals(make_heads):
    heads = make_heads(test_score_thresh=-1.0).eval()
    empty = proposals(torch.zeros(0, 4))
    (nothing, something), _ = heads(None, maps(2), [empty, proposals()])
    assert len(nothing) == 0 and len(something) > 0
    (nothing,), _ = heads(None, maps(1), [empty])
    assert len(nothing) == 0 and nothing.pred_masks.shape[0] == 0


def test_background_is_the_number_of_classes(make_heads, embedder):
    heads = make_heads().train()
    assert heads.num_classes == heads.box_predictor.num_classes == 3
    truth = targets([[2.0, 3.0, 30.0, 41.0]], [1])
    with EventStorage():
        (sampled,) = heads.label_and_sample_proposals([proposals()], [truth])
        assert sorted(sampled.gt_classes.unique().tolist()) == [1, 3]
        more = Vocabulary.from_names(["a", "b", "c", "d", "e"])
        heads.set_classes(embedder(more), more.seen)
        (sampled,) = heads.label_and_sample_proposals([proposals()], [truth])
        assert sorted(sampled.gt_classes.unique().tolist()) == [1, 5]


def test_masks_are_class_agnostic(make_heads, embedder):
    heads = make_heads(test_score_thresh=-1.0).eval()
    assert heads.mask_head.predictor.out_channels == 1
    (result,), _ = heads(None, maps(), [proposals()])
    assert result.pred_masks.shape == (len(result), 1, 14, 14)
    many = Vocabulary.from_names([f"word {i}" for i in range(30)])
    heads.set_classes(embedder(many), many.seen)
    (result,), _ = heads(None, maps(), [proposals()])
    assert result.pred_classes.max() > 2
    assert result.pred_masks.shape == (len(result), 1, 14, 14)


def test_mask_loss_is_the_mean_binary_cross_entropy_of_foreground(make_heads):
    heads = make_heads().train()
    features = maps(2)
    truth = targets([BOXES[0].tolist()], [1])
    instances = [proposals(), proposals(BOXES[:1])]
    instances[0].gt_classes = torch.tensor([3, 3, 3])
    instances[1].gt_classes = torch.tensor([1])
    instances[0].gt_masks = BitMasks(truth.gt_masks.tensor.expand(3, -1, -1))
    instances[1].gt_masks = truth.gt_masks
    with EventStorage():
        loss = heads._forward_mask(features, instances)["loss_mask"]
    levels = [features[f"p{i}"][1:] for i in range(2, 6)]
    logits = heads.mask_head.layers(heads.mask_pooler(levels, [Boxes(BOXES[:1])]))
    # the mask fills its box
    torch.testing.assert_close(loss, F.softplus(-logits).mean())


@pytest.mark.parametrize("norm", ["SyncBN", "GN", ""])
def test_a_batch_without_foreground_trains(make_heads, norm):
    heads = make_heads(mask_norm=norm).train()
    features = {name: level.requires_grad_() for name, level in maps(2).items()}
    truth = [targets([], []), targets([], [])]
    with EventStorage():
        _, losses = heads(None, features, [proposals(), proposals()], truth)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask"}
    assert losses["loss_mask"].item() == losses["loss_box_reg"].item() == 0.0
    assert losses["loss_cls"].item() > 0
    sum(losses.values()).backward()
    for parameter in heads.mask_head.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    for module_ in heads.modules():
        if isinstance(module_, nn.SyncBatchNorm):
            assert module_.running_mean.isfinite().all()
