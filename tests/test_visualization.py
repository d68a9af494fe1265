"""Drawing over pictures."""

import numpy as np
import pytest

from densedet.visualization import draw_segments, label_colour

IMAGE = np.full((40, 60, 3), 100, dtype=np.uint8)
MASKS = np.zeros((2, 40, 60), dtype=bool)
MASKS[0, :, :20] = MASKS[1, :30, 40:] = True


def test_segments_are_coloured_where_they_are():
    drawn = draw_segments(IMAGE, MASKS, ["grass", "cat"], [None, 0.87], smallest_side=400)
    assert drawn.shape == (400, 600, 3) and drawn.dtype == np.uint8
    assert (drawn[250:, 250:350] == 100).all()  # nobody's
    for place, label in (((380, 100), "grass"), ((20, 500), "cat")):
        expected = 0.55 * 100 + 0.45 * 255 * np.array(label_colour(label))
        assert drawn[place] == pytest.approx(expected, abs=4)
    # the texts stand in the middle of the segments
    assert (drawn[180:220, 50:150] < 20).any() and (drawn[130:170, 450:550] < 20).any()


def test_no_segments_leave_the_picture_as_it_is():
    assert (draw_segments(IMAGE, MASKS[:0], [], [], smallest_side=40) == IMAGE).all()
