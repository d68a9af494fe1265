"""Drawing at the resolution of the image."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from matplotlib import colormaps, font_manager

from densedet import fonts
from densedet.drawing import draw_detections, draw_segments, draw_similarity, label_colour

IMAGE = np.full((120, 180, 3), 100, dtype=np.uint8)
MASKS = np.zeros((2, 120, 180), dtype=bool)
MASKS[0, :, :60] = MASKS[1, :90, 120:] = True


def _tinted(label, alpha):
    return (1 - alpha) * 100 + alpha * 255 * np.array(label_colour(label))


def test_segments_are_coloured_where_they_are_and_stably():
    for labels in (["grass", "cat"], ["cat", "grass"]):
        drawn = draw_segments(IMAGE, MASKS, labels, [None, 0.87])
        assert drawn.shape == IMAGE.shape and drawn.dtype == np.uint8
        assert (drawn[:, 75:105] == 100).all()  # nobody's
        for place, label in (((110, 10), labels[0]), ((10, 170), labels[1])):
            assert drawn[place] == pytest.approx(_tinted(label, 0.45), abs=1)
        assert (drawn[50:70, 10:50] < 40).any() and (drawn[35:55, 125:175] < 40).any()  # texts
    assert (IMAGE == 100).all()
    assert (draw_segments(IMAGE, MASKS[:0], [], []) == IMAGE).all()
    assert (draw_segments(IMAGE, MASKS[:1] & False, ["cat"], [0.5]) == IMAGE).all()


def test_holes_stay_open():
    ring = np.zeros((1, 120, 180), dtype=bool)
    ring[0, 10:110, 10:170] = True
    ring[0, 40:80, 100:160] = False
    drawn = draw_segments(IMAGE, ring, ["sea"], [None])
    assert drawn[100, 20] == pytest.approx(_tinted("sea", 0.45), abs=1)
    assert (drawn[42:78, 102:158] == 100).all()


@pytest.mark.parametrize("with_masks", [True, False])
def test_boxes_and_masks_of_detections(with_masks):
    found = Instances((120, 180), pred_boxes=Boxes(torch.tensor([[20.0, 30, 100, 110]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([1])
    if with_masks:
        found.pred_masks = torch.zeros(1, 120, 180, dtype=torch.bool)
        found.pred_masks[0, 60:100, 40:80] = True
    drawn = draw_detections(IMAGE, found, ("dog", "cat"))
    colour = (255 * np.array(label_colour("cat"))).round()
    for place in ((109, 20), (109, 99), (80, 20), (80, 99)):
        assert (drawn[place] == colour).all()
    assert (drawn[112:] == 100).all() and (drawn[:, 102:] == 100).all()
    expected = _tinted("cat", 0.25) if with_masks else np.full(3, 100)
    assert drawn[80, 60] == pytest.approx(expected, abs=1)
    assert (draw_detections(IMAGE, found[:0], ("dog", "cat")) == IMAGE).all()


def test_a_heat_map_runs_from_the_lowest_to_the_highest_value():
    cosines = np.full((120, 180), 0.2, dtype=np.float32)
    cosines[:, 60:120], cosines[:, 120:] = 0.25, 0.3
    drawn = draw_similarity(IMAGE, cosines, "cat")
    for column, share in ((30, 0.0), (90, 0.5), (150, 1.0)):
        colour = 255 * np.array(colormaps["turbo"](share)[:3])
        assert drawn[100, column] == pytest.approx(0.4 * 100 + 0.6 * colour, abs=3)
    assert draw_similarity(IMAGE, 0 * cosines, "cat").shape == IMAGE.shape


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 400), (400, 5)])
@pytest.mark.parametrize("label", ["$x^", "", "two\nlines", "日本 <&> ☃", "a very long label " * 9])
def test_any_label_in_any_image(shape, label):
    """Where a text is larger than the image, its beginning is seen."""
    image, mask = np.full((*shape, 3), 100, dtype=np.uint8), np.ones((1, *shape), dtype=bool)
    found = Instances(shape, pred_boxes=Boxes(torch.tensor([[0.0, 0, shape[1], shape[0]]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    for drawn in (
        draw_detections(image, found, (label,)),
        draw_segments(image, mask, [label], [0.5]),
        draw_similarity(image, np.zeros(shape, dtype=np.float32), label),
    ):
        assert drawn.shape == image.shape and (drawn != 100).any()


def test_each_character_has_a_font_that_has_it(monkeypatch):
    """DejaVu Sans lacks a mathematical alphabet that STIX, beside it, has."""
    parts = fonts.runs("cat \U0001d4b8\U0001d4b6 x")
    assert "".join(text for text, _ in parts) == "cat \U0001d4b8\U0001d4b6 x"
    usual = font_manager.findfont(font_manager.FontProperties(family=["sans-serif"]))
    assert parts[0] == ("cat ", usual) and parts[-1][1] == usual
    for text, path in parts:
        known = font_manager.get_font(path).get_charmap()
        assert all(ord(character) in known for character in text if character != " ")
    assert len({path for _, path in parts}) == 2
