"""Images larger than what a model should see: bounded for it, answered in their own pixels."""

import logging

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from densedet.errors import ConfigError
from densedet.predictor import Prediction, Predictor
from densedet.predictor.images import MAX_PIXELS, bounded
from densedet.predictor.shared import _fitting_pixels
from densedet.vocabulary import Vocabulary

WORDS = Vocabulary.parse("cat").with_stuff(Vocabulary.parse("sea"))


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((100, 50), 5_000, (100, 50)),
        ((100, 50), 1_250, (50, 25)),
        ((3_000, 4_000), 409_600, (554, 739)),
        ((1, 1_000_000), 1_000, (1, 1_000)),
        ((10_000, 3), 100, (100, 1)),
        ((7, 7), 1, (1, 1)),
        ((4_999, 5_000), MAX_PIXELS, (1_448, 1_448)),
    ],
)
def test_bounded(size, most, expected):
    assert bounded(*size, most) == expected
    assert expected[0] * expected[1] <= most


def test_a_prediction_in_another_size():
    found = Instances((2, 4))
    found.pred_boxes = Boxes(torch.tensor([[1.0, 0, 3, 2]]))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    found.pred_masks = torch.tensor([[[0, 1, 1, 0], [0, 0, 1, 0]]], dtype=torch.bool)
    panoptic = torch.tensor([[1, 1, 2, 2], [1, 0, 0, 2]], dtype=torch.int32)
    segments = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.5},
        {"id": 2, "category_id": 1, "isthing": False, "area": 3},
    ]
    outputs = {
        "instances": found,
        "panoptic_seg": (panoptic, segments),
        "sem_seg": torch.tensor([[[4.0, 4, 0, 0], [4, 4, 0, 0]], [[0, 0, 4, 4], [0, 0, 4, 4]]]),
    }
    small = Prediction.of(outputs, WORDS)
    large = small.resized(4, 12)
    assert large.instances.image_size == (4, 12)
    assert large.instances.pred_boxes.tensor.tolist() == [[3.0, 0, 9, 4]]
    repeated = [
        (large.instances.pred_masks[0], small.instances.pred_masks[0]),
        (large.panoptic, small.panoptic),
        (large.semantic, small.semantic),
        (large.confidence, small.confidence),
    ]
    for after, before in repeated:
        assert torch.equal(after, before.repeat_interleave(2, 0).repeat_interleave(3, 1))
    assert [s.get("area") for s in large.segments] == [None, 18]
    assert large.labels == small.labels and large.vocabulary is small.vocabulary
    back = large.resized(2, 4)
    assert torch.equal(back.panoptic, small.panoptic)
    assert torch.equal(back.instances.pred_masks, small.instances.pred_masks)
    assert small.resized(2, 4) is small
    for task, told in (
        ("panoptic", {"panoptic", "segments"}),
        ("instance", {"instances"}),
        ("semantic", {"semantic", "confidence"}),
    ):
        alone = vars(small.telling(task))
        assert {k for k, v in alone.items() if v not in (None, ())} == {*told, "vocabulary"}


@pytest.mark.parametrize("shape", [(160, 320), (240, 80)])
def test_what_is_found_is_that_of_the_smaller_image(panoptic_source, image, shape):
    """As if the user had made the image smaller; in the pixels of the image as it is."""
    large = np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BICUBIC))
    small_size = bounded(*shape, 12_800)
    small = np.asarray(Image.fromarray(large).resize(small_size[::-1], Image.Resampling.BILINEAR))
    bound, free = (Predictor(*panoptic_source, device="cpu", max_pixels=n) for n in (12_800, None))
    for predictor in (bound, free):
        predictor.set_vocabulary(
            Vocabulary.parse("red star;ring").with_stuff(WORDS.of_kind("stuff"))
        )
    found, expected = bound.predict(large), free.predict(small)
    assert found.instances.image_size == found.semantic.shape == found.panoptic.shape == shape
    assert len(found.instances) == len(expected.instances) > 0
    scale = torch.tensor([shape[1] / small_size[1], shape[0] / small_size[0]] * 2)
    torch.testing.assert_close(
        found.instances.pred_boxes.tensor, expected.instances.pred_boxes.tensor * scale
    )
    rows = (torch.arange(shape[0]) + 0.5).mul(small_size[0] / shape[0]).long()
    columns = (torch.arange(shape[1]) + 0.5).mul(small_size[1] / shape[1]).long()
    assert torch.equal(found.semantic, expected.semantic[rows][:, columns])
    assert torch.equal(found.panoptic, expected.panoptic[rows][:, columns])
    (batched,) = bound.predict_batch([large], task="semantic")
    assert batched.instances is None and batched.semantic.shape == shape
    # the dense map, regions and similarities are of the same smaller image
    torch.testing.assert_close(bound.dense_features(large), free.dense_features(small))
    box = torch.tensor([[10.0, 20, 70, 75]])
    torch.testing.assert_close(
        bound.region_features(box, image=large), free.region_features(box / scale, image=small)
    )
    assert bound.similarity("red star", large).shape == shape


def test_the_bound_fits_the_model(predictor, zero_shot):
    """80 x 80 cells of 8 pixels for the tiny tower; 2 million pixels where there is no tower."""
    assert _fitting_pixels(predictor.model) == _fitting_pixels(zero_shot.model) == 640**2
    assert _fitting_pixels(torch.nn.Linear(1, 1)) == MAX_PIXELS


def test_a_photograph_of_12_megapixels(predictor, image, caplog):
    photo = np.asarray(Image.fromarray(image).resize((4_000, 3_000)))
    predictor.set_vocabulary("red star;blue ring")
    with caplog.at_level(logging.WARNING):
        found = predictor.predict(photo, least_score=0.01, task="instance")
    assert found.instances.image_size == (3_000, 4_000)
    assert "4000 x 3000 pixels is looked at with 739 x 554 (max_pixels=409600)" in caplog.text
    assert (found.instances.scores >= 0.01).all() and len(found.instances)
    assert found.instances.pred_boxes.tensor.amax() > 739


def test_a_bound_of_nothing_is_refused(config, weights):
    with pytest.raises(ConfigError, match="max_pixels=0: give a number of pixels above 0"):
        Predictor(config, weights, device="cpu", max_pixels=0)
