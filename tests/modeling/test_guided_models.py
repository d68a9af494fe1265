"""RetinaNet and Mask R-CNN on a guided CLIP ResNet."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.structures import pairwise_iou
from detectron2.utils.events import EventStorage
from torch import nn

from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.backbone import AlignedResNet
from densedet.modeling.backbone.guided import GuidedBackbone
from densedet.modeling.detection_limits import DetectionLimits, limited
from densedet.modeling.guidance import BoxScoreLoss
from densedet.modeling.meta_arch import GuidedRCNN, GuidedRetinaNet
from densedet.modeling.retinanet import P6P7
from densedet.vocabulary import Vocabulary

FPN = 16
NAMES = ["cat", "dog", "zebra"]
BOXES = [[4.0, 6.0, 40.0, 50.0], [30.0, 10.0, 60.0, 44.0]]


def make_retinanet(guided: GuidedBackbone, num_classes: int = 3, **kwargs: Any) -> GuidedRetinaNet:
    cfg = model_zoo.get_config("common/models/retinanet.py").model
    cfg.backbone.bottom_up = guided
    cfg.backbone.out_channels = FPN
    channels = guided.output_shape()["res5"].channels
    cfg.backbone.top_block = P6P7(channels, FPN)
    cfg.head.update(input_shape=[ShapeSpec(channels=FPN)] * 5, conv_dims=[FPN])
    cfg.update(_target_=GuidedRetinaNet, num_classes=num_classes, test_score_thresh=0.0)
    cfg.update(pixel_mean=None, pixel_std=None, input_format="RGB")
    cfg.update(kwargs)
    return instantiate(cfg)


def make_rcnn(guided: GuidedBackbone, num_classes: int = 3, **kwargs: Any) -> GuidedRCNN:
    cfg = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
    cfg.backbone.bottom_up = guided
    cfg.backbone.update(in_features=["res2", "res3", "res4", "res5"], out_channels=FPN)
    cfg.proposal_generator.head.in_channels = FPN
    cfg.proposal_generator.update(pre_nms_topk=(50, 50), post_nms_topk=(20, 20))
    heads = cfg.roi_heads
    heads.update(num_classes=num_classes, batch_size_per_image=16)
    heads.box_head.update(input_shape=ShapeSpec(channels=FPN, height=7, width=7), fc_dims=[16])
    heads.box_predictor.update(input_shape=ShapeSpec(channels=16), test_score_thresh=0.0)
    heads.mask_head.update(
        input_shape=ShapeSpec(channels=FPN, height=14, width=14), conv_dims=[FPN, FPN]
    )
    cfg.update(_target_=GuidedRCNN, pixel_mean=None, pixel_std=None, input_format="RGB")
    cfg.update(kwargs)
    return instantiate(cfg)


MAKERS = {"retinanet": make_retinanet, "rcnn": make_rcnn}
LOSSES = {
    "retinanet": {"loss_cls", "loss_box_reg", "loss_aux"},
    "rcnn": {
        *("loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "loss_aux")
    },
}


@pytest.fixture(params=list(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_model(make_guided: Any) -> Callable[..., Any]:
    """``make_model("retinanet" | "rcnn", **kwargs)``."""

    def make(name: str, **kwargs: Any) -> Any:
        words = Vocabulary.from_names(NAMES)
        return MAKERS[name](make_guided(words, BoxScoreLoss(), fuse_scaled=True), **kwargs)

    return make


@pytest.fixture
def model(make_model: Any, name: str) -> Any:
    return make_model(name)


@pytest.fixture
def records(make_record: Any) -> list[dict[str, Any]]:
    """Two images of different size, the second without a box."""
    return [
        make_record(60, 70, BOXES, [0, 2]),
        make_record(64, 50, [], [], seed=1),
    ]


def step(model: nn.Module, records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with EventStorage():
        losses = model.train()(records)
        sum(losses.values()).backward()
    return losses


def test_a_training_step(name: str, model: Any, records: list[dict[str, Any]]) -> None:
    losses = step(model, records)
    assert set(losses) == LOSSES[name]
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    guidance = model.guided.guidance
    for part in (guidance.text.contexts, guidance.gamma, *guidance.decoder.parameters()):
        assert part.grad is not None and part.grad.isfinite().all()
    assert guidance.text.contexts.grad.any() and guidance.gamma.grad.any()
    assert all(p.grad is None for p in guidance.text.encoder.parameters())
    visual = model.guided.trunk.visual.tower
    assert visual.conv1.weight.grad.any() and visual.attnpool.c_proj.weight.grad.any()


def test_every_parameter_learns(
    model: Any, records: list[dict[str, Any]], without_gradient: Any
) -> None:
    step(model, records)
    assert without_gradient(model) == []


def test_the_auxiliary_loss_is_that_of_the_padded_images(
    model: Any, records: list[dict[str, Any]]
) -> None:
    losses = step(model, records)
    images = model.preprocess_image(records).tensor
    assert images.shape == (2, 3, 64, 96)
    torch.manual_seed(0)  # the dropout of the decoder comes first
    guided = model.guided.guide(images)
    expected = model.guided.guidance.losses(guided, [r["instances"] for r in records])
    # gamma is 1e-4, so the decoder's dropout hardly shows; running statistics do not in training
    assert torch.allclose(losses["loss_aux"], expected["loss_aux"], rtol=1e-4)
    assert losses["loss_aux"] > 0


def test_images_without_any_box(name: str, model: Any, make_record: Any) -> None:
    losses = step(model, [make_record(64, 64, [], []), make_record(40, 64, [], [], seed=1)])
    assert set(losses) == LOSSES[name]
    assert losses["loss_aux"] == 0
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(loss.isfinite() for loss in losses.values())
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_evaluation_runs_the_text_tower_once(
    model: Any, records: list[dict[str, Any]], count_calls: Callable[[nn.Module], list[int]]
) -> None:
    calls = count_calls(model.guided.guidance.text.encoder.ln_final)
    with torch.no_grad():
        outputs = [model.eval()(records) for _ in range(3)]
    assert calls == [3]
    assert all(len(output) == 2 for output in outputs)
    for record, result in zip(records, outputs[0], strict=True):
        instances = result["instances"]
        assert instances.image_size == (record["height"], record["width"])
        assert len(instances) and int(instances.pred_classes.max()) < 3
    first, last = (output[0]["instances"].scores for output in (outputs[0], outputs[-1]))
    assert torch.equal(first, last)


def test_statistics_are_those_of_the_weights(make_model: Any, name: str, model: Any) -> None:
    visual = model.guided.trunk.visual
    assert torch.allclose(model.pixel_mean.flatten(), 255 * torch.tensor(visual.pixel_mean))
    assert torch.allclose(model.pixel_std.flatten(), 255 * torch.tensor(visual.pixel_std))
    given = make_model(name, pixel_mean=[1.0, 2.0, 3.0], pixel_std=[4.0, 5.0, 6.0])
    assert given.pixel_mean.flatten().tolist() == [1, 2, 3]
    assert given.pixel_std.flatten().tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog"], "category 3 of 3 is 'zebra', not nothing"),
        (["dog", "cat", "zebra"], "category 1 of 3 is 'cat', not 'dog'"),
        ([*NAMES, "horse"], "category 4 of 3 is nothing, not 'horse'"),
    ],
)
def test_another_vocabulary_needs_retraining(model: Any, names: list[str], message: str) -> None:
    with pytest.raises(VocabularyError, match=f"{message}.*FPN and the classifier.*retraining"):
        model.set_vocabulary(Vocabulary.from_names(names))
    assert model.vocabulary.labels == model.guided.guidance.vocabulary.labels == tuple(NAMES)


def test_a_name_over_the_budget_changes_nothing(model: Any) -> None:
    before = model.vocabulary
    with pytest.raises(VocabularyError, match="class_tokens"):
        model.set_vocabulary(Vocabulary.parse("cat,a very small house cat;dog;zebra"))
    assert model.vocabulary == model.guided.guidance.vocabulary == before


def test_the_same_labels_are_accepted(model: Any) -> None:
    same = Vocabulary.from_names(NAMES).with_unseen(["dog"])
    model.set_vocabulary(same)
    assert model.vocabulary == same
    words = Vocabulary.parse("cat,kitten;dog;zebra")
    model.set_vocabulary(words)
    assert model.vocabulary == model.guided.guidance.vocabulary == words


def test_the_score_map_alone_follows_a_vocabulary(
    model: Any, records: list[dict[str, Any]]
) -> None:
    model.eval()
    images = model.preprocess_image(records).tensor
    with torch.no_grad():
        before = model.guided.guide(images).scores
        model.guided.guidance.set_vocabulary(Vocabulary.from_names(["dog", "cat", "bird", "car"]))
        after = model.guided.guide(images).scores
    assert after.shape == (2, 4, *before.shape[2:])
    assert torch.allclose(after[:, 1], before[:, 0], atol=1e-4)  # gamma mixes the prompts a little
    for mode in (True, False):
        with pytest.raises(VocabularyError, match="retraining"):
            model.train(mode)(records)
    assert model.vocabulary.labels == tuple(NAMES)
    model.guided.guidance.set_vocabulary(model.vocabulary)
    with torch.no_grad():
        assert len(model.eval()(records)) == 2


def test_another_number_of_classes_is_refused(make_model: Any, name: str) -> None:
    with pytest.raises(ConfigError, match="3 categories.*num_classes=4"):
        make_model(name, num_classes=4)


def test_a_plain_backbone_is_refused(make_model: Any) -> None:
    model = make_model("retinanet")
    plain = AlignedResNet(model.guided.trunk.visual, aligned=False)
    with pytest.raises(ConfigError, match="GuidedRetinaNet needs a GuidedBackbone"):
        GuidedRetinaNet(
            backbone=plain,
            head=model.head,
            head_in_features=model.head_in_features,
            anchor_generator=model.anchor_generator,
            box2box_transform=model.box2box_transform,
            anchor_matcher=model.anchor_matcher,
            num_classes=3,
        )


def test_the_loss_normalizer(make_model: Any, records: list[dict[str, Any]]) -> None:
    """Of the batch: the number of positives; else a moving average that starts at 100."""
    losses, positives = {}, 0.0
    for normalizer in ("batch", "ema"):
        model = make_model("retinanet", loss_normalizer=normalizer).train()
        torch.manual_seed(0)
        with EventStorage() as storage:
            losses[normalizer] = model(records)
            positives = 2 * storage.latest()["num_pos_anchors"][0]
    assert positives >= 1
    average = 0.9 * 100 + 0.1 * positives
    for key in ("loss_cls", "loss_box_reg"):
        ratio = losses["batch"][key] / losses["ema"][key]
        assert ratio.item() == pytest.approx(average / positives, rel=1e-4)
    with pytest.raises(ConfigError, match="ema, batch"):
        make_model("retinanet", loss_normalizer="mean")


def test_detections_within_limits(model: Any, records: list[dict[str, Any]]) -> None:
    """One of those that overlap, whatever their classes are, and no more than asked for."""
    model.eval()
    overlap = 0.3
    owner = model if isinstance(model, GuidedRetinaNet) else model.roi_heads.box_predictor
    owner.test_nms_thresh = overlap
    with torch.no_grad():
        (whole, *_) = (output["instances"] for output in model(records))
        with limited(model, DetectionLimits(0.0, agnostic_nms=True)):
            (alone, *_) = (output["instances"] for output in model(records))
        with limited(model, DetectionLimits(0.0, top_k=2, agnostic_nms=True)):
            (two, *_) = (output["instances"] for output in model(records))
        with limited(model, DetectionLimits(float(whole.scores[1]), top_k=5)):
            (some, *_) = (output["instances"] for output in model(records))
        (again, *_) = (output["instances"] for output in model(records))
    overlaps = pairwise_iou(alone.pred_boxes, alone.pred_boxes).fill_diagonal_(0)
    if owner is not model:  # RetinaNet clips boxes to the image after it has suppressed some
        assert overlaps.max() < overlap + 0.1
    assert len(whole) > len(alone) >= len(two) == 2 and two.scores.equal(alone.scores[:2])
    assert 2 <= len(some) <= 5 and some.scores.equal(whole.scores[: len(some)])
    assert again.scores.equal(whole.scores) and alone.scores[0] == whole.scores[0]
