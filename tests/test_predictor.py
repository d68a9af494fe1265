"""The predictor on the quickstart model with untrained heads."""

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_util

from densedet import model_zoo
from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build
from densedet.errors import CheckpointError, ConfigError, VocabularyError
from densedet.predictor import Predictor, coco_results, segment_results
from densedet.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def config():
    return model_zoo.get_config("projects/fvit/configs/quickstart.py")


@pytest.fixture(scope="module")
def weights(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    Checkpointer(build(config.model, "model"), str(folder)).save("model_final")
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def predictor(config, weights):
    return Predictor(config, weights, device="cpu")


@pytest.fixture(scope="module")
def image():
    return make_scene(0, "val", 0).image


def test_labels_are_the_users_own(predictor, image):
    predictor.set_vocabulary("crimson star,red star;blue ring")
    found = predictor.predict(image).instances
    assert len(found) and set(found.pred_classes.tolist()) <= {0, 1}
    assert found.image_size == (160, 160) and found.pred_masks.shape[1:] == (160, 160)
    results = coco_results(found, 7, predictor.vocabulary)
    assert {r["label"] for r in results} <= {"crimson star", "blue ring"}
    assert all(r["image_id"] == 7 and r["category_id"] in (1, 2) for r in results)
    for row, result in enumerate(results):
        x0, y0, x1, y1 = found.pred_boxes.tensor[row].tolist()
        assert result["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.01)
        mask = mask_util.decode(result["segmentation"])
        assert np.array_equal(mask.astype(bool), found.pred_masks[row].numpy())


def test_what_training_had_labels_of_counts_as_seen(predictor):
    predictor.set_vocabulary("red thing,red star;red ball;teapot")
    assert predictor.vocabulary.seen == (True, False, False)


def test_the_order_of_the_words_does_not_matter(predictor, image):
    def scores(words):
        predictor.set_vocabulary(words)
        found = predictor.predict(image).instances
        labels = [words[i] for i in found.pred_classes.tolist()]
        return sorted(zip(labels, found.scores.tolist(), strict=True))

    words = ["red star", "blue ring", "green ball", "white cone"]
    first, second = scores(words), scores(words[::-1])
    assert [label for label, _ in first] == [label for label, _ in second]
    assert [s for _, s in first] == pytest.approx([s for _, s in second], abs=1e-6)


def test_a_vocabulary_changes_no_weight(predictor, image):
    before = {k: v.clone() for k, v in predictor.model.state_dict().items()}
    predictor.set_vocabulary(["red star", "teapot"])
    predictor.predict(image)
    after = predictor.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("words", ["", [], "red star;red star"])
def test_bad_vocabularies_are_refused(predictor, words):
    with pytest.raises(VocabularyError):
        predictor.set_vocabulary(words)


def test_missing_and_foreign_weights_are_refused(config, weights, tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.pth do not exist"):
        Predictor(config, tmp_path / "absent.pth")
    closed = model_zoo.get_config("projects/fvit/configs/quickstart_closed_set.py")
    with pytest.raises(ConfigError, match="GeneralizedRCNN has no vocabulary"):
        Predictor(closed, weights)
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit OpenVocabularyRCNN"):
        Predictor(config, tmp_path / "other.pth")


def test_a_head_that_fixed_its_classes_says_so(tmp_path):
    config = model_zoo.get_config("projects/denseclip/configs/quickstart.py")
    Checkpointer(build(config.model, "model"), str(tmp_path)).save("weights")
    predictor = Predictor(config, tmp_path / "weights.pth")
    with pytest.raises(VocabularyError, match="predict_from"):
        predictor.set_vocabulary("red star")


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory):
    """The panoptic quickstart with untrained heads; its instances have any score."""
    config = model_zoo.get_config("projects/panoptic_fpn/configs/quickstart.py")
    config.model.combine_instances_score_thresh = 0.0
    folder = tmp_path_factory.mktemp("panoptic")
    torch.manual_seed(0)
    Checkpointer(build(config.model, "model"), str(folder)).save("weights")
    return Predictor(config, folder / "weights.pth", device="cpu")


WORDS = Vocabulary.parse("ball,red ball;ring").with_stuff(Vocabulary.parse("grass,lawn;sky;sea"))


def test_panoptic_segments_have_the_users_labels(panoptic, image):
    panoptic.set_vocabulary(WORDS)
    found = panoptic.predict(image)
    assert found.panoptic.shape == found.semantic.shape == (160, 160)
    masks, segments = found.segment_masks(WORDS)
    assert len(masks) == len(segments) == len(found.panoptic.unique().nonzero())
    results = segment_results(masks, segments, 7, WORDS)
    assert {r["isthing"] for r in results} == {True, False}
    for result, mask in zip(results, masks, strict=True):
        assert result["label"] == WORDS.labels[result["category_id"] - 1]
        assert result["isthing"] == (result["label"] in ("ball", "ring"))
        assert ("score" in result) == result["isthing"]
        assert result["area"] == mask.sum() and result["image_id"] == 7
        assert np.array_equal(mask_util.decode(result["segmentation"]).astype(bool), mask.numpy())


def test_panoptic_models_need_stuff(panoptic):
    with pytest.raises(VocabularyError, match="has no stuff"):
        panoptic.set_vocabulary("ball;ring")


def test_a_model_without_training_needs_no_weights(image):
    config = model_zoo.get_config("projects/panoptic_fpn/configs/quickstart_zero_shot.py")
    predictor = Predictor(config, device="cpu")
    predictor.set_vocabulary(WORDS)
    found = predictor.predict(image)
    assert found.instances is None and found.panoptic is None
    masks, segments = found.segment_masks(WORDS)
    assert masks.sum(dim=0).eq(1).all()  # every pixel has one class
    for mask, segment in zip(masks, segments, strict=True):
        assert found.semantic[mask].eq(segment["category_id"]).all() and mask.any()


def test_detections_have_no_segments(predictor, image):
    with pytest.raises(ValueError, match="no segments"):
        predictor.predict(image).segment_masks(predictor.vocabulary)
