"""The result type, on made-up outputs of models."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from densedet.errors import VocabularyError
from densedet.modeling.pixel_scores import StoredScores
from densedet.predictor import NONE, NONE_LABEL, Prediction
from densedet.vocabulary import Vocabulary

WORDS = Vocabulary.parse("cat;dog").with_stuff(Vocabulary.parse("sea;sky"))


def instances(masks=True):
    found = Instances((2, 4))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0, 2, 2], [1, 0, 4, 2]]))
    found.scores = torch.tensor([0.4, 0.9])
    found.pred_classes = torch.tensor([1, 0])
    if masks:
        found.pred_masks = torch.tensor(
            [[[1, 1, 0, 0], [1, 1, 0, 0]], [[0, 1, 1, 0], [0, 0, 0, 0]]], dtype=torch.bool
        )
    return found


def panoptic():
    segments = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.7, "instance_id": 0},
        {"id": 2, "category_id": 3, "isthing": False, "area": 2},
    ]
    pixels = torch.tensor([[1, 1, 0, 2], [0, 1, 0, 2]], dtype=torch.int32)
    return {"panoptic_seg": (pixels, segments), "instances": instances()}


def semantic():
    chances = torch.tensor([[[0.9, 0.2]], [[0.04, 0.3]], [[0.03, 0.4]], [[0.03, 0.1]]])
    return {"sem_seg": chances.log() + 3.0}


def test_labels_follow_the_instances():
    found = Prediction.of({"instances": instances()}, WORDS)
    assert found.labels == ("dog", "cat")
    labels = [found.label(i) for i in found.categories.unique().tolist()]
    assert labels == [NONE_LABEL, "cat", "dog"]


def test_the_best_detection_has_the_pixel():
    found = Prediction.of({"instances": instances()}, WORDS)
    assert found.categories.tolist() == [[1, 0, 0, NONE], [1, 1, NONE, NONE]]
    assert Prediction.of({"instances": instances(masks=False)}, WORDS).categories is None


def test_less_certain_detections_are_none_of_these():
    found = Prediction.of({"instances": instances()}, WORDS).above(0.5)
    assert found.labels == ("cat",)
    assert found.categories.tolist() == [[NONE, 0, 0, NONE], [NONE] * 4]


def test_panoptic():
    found = Prediction.of(panoptic(), WORDS)
    assert [s["label"] for s in found.segments] == ["cat", "sky"]
    assert found.categories.tolist() == [[0, 0, NONE, 3], [NONE, 0, NONE, 3]]
    masks, segments = found.segment_masks()
    assert segments == found.segments and masks.sum(dim=(1, 2)).tolist() == [3, 2]
    less = found.above(0.8)  # stuff has no score and stays
    assert less.categories.tolist() == [[NONE, NONE, NONE, 3]] * 2
    assert [s["label"] for s in less.segments] == ["sky"] and less.panoptic.dtype == torch.int32
    assert len(less.instances) == 1 and found.above(0.0).panoptic.equal(found.panoptic)


def test_nothing_found_at_all():
    nothing = (torch.zeros(2, 4, dtype=torch.int32), [])
    found = Prediction.of({"panoptic_seg": nothing, "instances": instances()[:0]}, WORDS)
    assert found.labels == () and (found.categories == NONE).all()
    assert found.segment_masks()[0].shape == (0, 2, 4)


def test_semantic():
    found = Prediction.of(semantic(), WORDS)
    assert found.semantic.tolist() == found.categories.tolist() == [[0, 2]]
    assert found.confidence[0].tolist() == pytest.approx([0.9, 0.4])
    less = found.above(0.5)
    assert less.categories.tolist() == [[0, NONE]]
    masks, segments = less.segment_masks()
    assert masks.tolist() == [[[True, False]]]
    assert segments == ({"category_id": 0, "label": "cat", "isthing": True},)


def test_a_single_word_is_everywhere_whatever_the_score():
    found = Prediction.of({"sem_seg": torch.zeros(1, 2, 4)}, Vocabulary.parse("cat"))
    assert (found.above(1.0).categories == 0).all()


def test_only_some_labels_stay_and_the_others_are_none_of_these():
    found = Prediction.of({**panoptic(), **semantic()}, WORDS)
    less = found.only(["dog", " sky "])
    assert less.labels == ("dog",) and less.instances.scores.tolist() == pytest.approx([0.4])
    assert [s["label"] for s in less.segments] == ["sky"] and less.segments[0]["category_id"] == 3
    assert less.panoptic.tolist() == [[0, 0, 0, 2]] * 2 and less.panoptic.dtype == torch.int32
    assert less.semantic.tolist() == [[NONE, NONE]] and less.semantic.dtype == torch.int64
    assert found.only(["sea"]).semantic.tolist() == [[NONE, 2]]
    assert less.vocabulary == WORDS and less.confidence.equal(found.confidence)
    same = found.only(WORDS.labels)
    assert same.panoptic.equal(found.panoptic) and same.semantic.equal(found.semantic)
    assert same.labels == found.labels and same.segments == found.segments
    nothing = found.only([])
    assert nothing.labels == nothing.segments == () and (nothing.categories == NONE).all()
    with pytest.raises(VocabularyError, match="no label 'bird'"):
        found.only(["cat", "bird"])


def test_two_predictions_are_never_equal():
    one, other = Prediction.of(semantic(), WORDS), Prediction.of(semantic(), WORDS)
    assert one != other and len({one, other}) == 2


def test_probabilities_are_taken_as_they_are():
    chances = StoredScores(semantic()["sem_seg"].softmax(dim=0), probabilities=True)
    found = Prediction.of({"sem_seg": chances}, WORDS)
    assert found.confidence[0].tolist() == pytest.approx([0.9, 0.4])


@pytest.mark.parametrize("score", [-0.1, 1.1])
def test_a_score_must_be_a_share(score):
    with pytest.raises(ValueError, match="must lie in 0..1"):
        Prediction.of(semantic(), WORDS).above(score)
