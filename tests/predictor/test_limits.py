"""Which detections a call wants: the rest costs no mask, and what is left is the same."""

import pytest
from torchvision.ops import nms

from densedet import model_zoo
from densedet.predictor import Predictor


def assert_same(found, expected):
    assert found.scores.equal(expected.scores)
    assert found.pred_boxes.tensor.equal(expected.pred_boxes.tensor)
    assert found.pred_classes.equal(expected.pred_classes)
    assert found.pred_masks.equal(expected.pred_masks)


@pytest.fixture(scope="module")
def everything(predictor, image):
    found = predictor.predict(image, 0.0).instances
    assert len(found) == 100
    return found


def test_the_least_score_acts_before_the_mask_head(predictor, image, everything):
    seen = []
    heads = predictor.model.roi_heads
    handle = heads.mask_head.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    least = float(everything.scores[29])
    found = predictor.predict(image, least).instances  # a score of exactly this is kept
    handle.remove()
    assert seen == [len(found)] and len(found) >= 30
    assert_same(found, everything[everything.scores >= least])
    assert heads.box_predictor.test_score_thresh == 0.01  # that of the config, again
    assert len(predictor.predict(image).instances) == int((everything.scores >= 0.05).sum())
    assert len(predictor.predict_batch([image], least)[0].instances) == len(found)


def test_top_k_are_the_best(predictor, image, everything):
    assert_same(predictor.predict(image, 0.0, top_k=7).instances, everything[:7])
    with pytest.raises(ValueError, match="top_k=0"):
        predictor.predict(image, top_k=0)
    with pytest.raises(ValueError, match="least_score=2"):
        predictor.predict_batch([image], 2)


@pytest.mark.parametrize("least", [0.0, 0.1])
def test_agnostic_nms_reports_a_region_once(predictor, image, least, monkeypatch):
    found = predictor.predict(image, least, agnostic_nms=True).instances
    some = predictor.predict(image, least, agnostic_nms=True, top_k=3).instances
    assert_same(some, found[:3])
    box_predictor = predictor.model.roi_heads.box_predictor
    assert "inference" not in vars(box_predictor) and box_predictor.test_nms_thresh < 1
    overlap, most = box_predictor.test_nms_thresh, box_predictor.test_topk_per_image
    monkeypatch.setattr(box_predictor, "test_nms_thresh", 1.0)  # every class of every proposal
    monkeypatch.setattr(box_predictor, "test_topk_per_image", -1)
    monkeypatch.setattr(predictor.model.roi_heads, "mask_on", False)
    every = predictor.predict(image, least).instances
    kept = nms(every.pred_boxes.tensor, every.scores, overlap)[:most]
    assert len(every) > len(found) and every[kept].scores.equal(found.scores)
    assert every[kept].pred_classes.equal(found.pred_classes)


@pytest.mark.parametrize("ensemble", [False, True])
def test_things_of_a_panoptic_model(panoptic, save_untrained, image, ensemble):
    """With a mask ensemble the scores are those after it."""
    if ensemble:
        config = model_zoo.get_config("projects/panoptic_fpn/configs/quickstart_clipself.py")
        base = model_zoo.get_config("projects/panoptic_fpn/configs/quickstart.py").model
        towers = [m.backbone.bottom_up.bottom_up.visual for m in (config.model, base)]
        towers[0].pretrained = towers[1].pretrained  # CLIPSelf's is trained by make demo
        config.model.combine_instances_score_thresh = 0.0
        panoptic = Predictor(config, save_untrained(config), device="cpu")
    assert (panoptic.model.mask_ensemble is not None) == ensemble
    whole = panoptic.predict(image, 0.0)
    least = float(whole.instances.scores.median())
    less = panoptic.predict(image, least)
    best = _best(whole.instances)
    assert_same(less.instances, best[best.scores >= least])
    assert less.panoptic.equal(whole.above(least).panoptic)
    assert less.segments == whole.above(least).segments
    assert_same(panoptic.predict(image, 0.0, top_k=4).instances, _best(whole.instances)[:4])
    assert panoptic.model.limits is None


def _best(instances):
    return instances[instances.scores.argsort(descending=True, stable=True)]


def test_pixels_keep_their_class_unless_a_score_is_asked_for(zero_shot, image):
    found = zero_shot.predict(image)
    assert found.semantic.min() >= 0
    least = float(found.confidence.median())
    assert zero_shot.predict(image, least).semantic.equal(found.above(least).semantic)
