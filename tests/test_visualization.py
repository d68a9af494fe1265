"""Drawing over pictures."""

import gc

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from densedet import visualization
from densedet.visualization import draw_detections, draw_segments, draw_similarity, label_colour

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


def test_holes_stay_open():
    ring = np.zeros((1, 40, 60), dtype=bool)
    ring[0, 5:35, 5:55] = True
    ring[0, 12:28, 35:50] = False
    drawn = draw_segments(IMAGE, ring, ["sea"], [None], smallest_side=400)
    expected = 0.55 * 100 + 0.45 * 255 * np.array(label_colour("sea"))
    assert drawn[320, 80] == pytest.approx(expected, abs=4)
    assert (drawn[130:270, 360:490] == 100).all()


def test_colours_depend_on_the_label_alone():
    """A label has its colour whatever else is there, in whatever order: films do not flicker."""
    for labels in (["cat", "dog"], ["dog", "cat"]):
        drawn = draw_segments(IMAGE, MASKS, labels, [None, None], smallest_side=400)
        for place, label in (((380, 100), labels[0]), ((20, 500), labels[1])):
            expected = 0.55 * 100 + 0.45 * 255 * np.array(label_colour(label))
            assert drawn[place] == pytest.approx(expected, abs=4)
    assert len({label_colour(f"label {i}") for i in range(1000)}) > 980


@pytest.mark.parametrize("label", ["$x^", "a $5 bill and $6", r"$\frac$", "日本 <&>"])
def test_any_label_can_be_drawn(label):
    found = Instances((40, 60))
    found.pred_boxes = Boxes(torch.tensor([[5.0, 5, 30, 30]]))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    assert (draw_detections(IMAGE, found, (label,)) != 100).any()
    assert (draw_segments(IMAGE, MASKS[:1], [label], [0.5]) != 100).any()
    assert draw_similarity(IMAGE, np.eye(40, 60, dtype=np.float32), label).shape == (640, 960, 3)


def test_a_heat_map_runs_from_the_lowest_to_the_highest_value():
    cosines = np.full((40, 60), 0.2, dtype=np.float32)
    cosines[:, 20:40], cosines[:, 40:] = 0.25, 0.3
    drawn = draw_similarity(IMAGE, cosines, "cat", smallest_side=400)
    for column, share in ((100, 0.0), (300, 0.5), (500, 1.0)):
        colour = 255 * np.array(colormaps["turbo"](share)[:3])
        assert drawn[300, column] == pytest.approx(0.4 * 100 + 0.6 * colour, abs=3)
    flat = draw_similarity(IMAGE, np.zeros((40, 60), np.float32), "cat", smallest_side=40)
    assert flat.shape == (40, 60, 3)


@pytest.mark.parametrize("height", [160, 5000])
def test_a_picture_two_pixels_wide(height):
    """Detectron2 takes its masks for polygons."""
    image, mask = np.full((height, 2, 3), 100, dtype=np.uint8), np.ones((1, height, 2), dtype=bool)
    found = Instances((height, 2), pred_boxes=Boxes(torch.tensor([[0.0, 0, 2, 50]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
    found.pred_masks = torch.from_numpy(mask)
    assert (draw_detections(image, found, ("cat",)) != 100).any()
    assert (draw_segments(image, mask, ["cat"], [0.5]) != 100).any()
    assert (draw_similarity(image, mask[0].astype(np.float32), "cat") != 100).any()


@pytest.mark.parametrize(
    ("shape", "size"), [((6, 700), (30, 3500)), ((700, 6), (3500, 30)), ((5, 5000), (5, 5000))]
)
def test_long_thin_pictures_are_enlarged_within_a_limit(shape, size):
    image = np.full((*shape, 3), 100, dtype=np.uint8)
    found = Instances(shape)
    found.pred_boxes, found.scores = Boxes(torch.tensor([[1.0, 1, 5, 5]])), torch.tensor([0.5])
    found.pred_classes = torch.tensor([0])
    mask = np.zeros((1, *shape), dtype=bool)
    mask[0, :3, :3] = True
    assert draw_detections(image, found, ("cat",)).shape[:2] == size
    assert draw_segments(image, mask, ["cat"], [None]).shape[:2] == size
    assert draw_similarity(image, mask[0].astype(np.float32), "cat").shape[:2] == size


def test_huge_images_are_drawn_smaller_with_everything_in_its_place(monkeypatch):
    """Of 120 x 180 pixels, where 60 x 90 are allowed: as if the image had been made smaller."""
    monkeypatch.setattr(visualization, "_MOST_PIXELS", 60 * 90)
    large = np.random.default_rng(0).integers(0, 256, (120, 180, 3), dtype=np.uint8)
    small = np.asarray(Image.fromarray(large).reduce(2))
    mask = np.zeros((1, 120, 180), dtype=bool)
    mask[0, 20:80, 40:120] = True
    cosines = np.linspace(0, 1, 120 * 180, dtype=np.float32).reshape(120, 180)
    drawn = []
    for image, step in ((large, 1), (small, 2)):
        found = Instances(image.shape[:2])
        found.pred_boxes = Boxes(torch.tensor([[40.0, 20, 120, 80]]) / step)
        found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([0])
        masks = mask[:, ::step, ::step]
        found.pred_masks = torch.from_numpy(masks.copy())
        drawn.append(
            (
                draw_detections(image, found, ("cat",), smallest_side=60),
                draw_segments(image, masks, ["cat"], [None], smallest_side=60),
                draw_similarity(image, cosines[::step, ::step], "cat", smallest_side=60),
            )
        )
    for of_large, of_small in zip(*drawn, strict=True):
        assert of_large.shape == (60, 90, 3) and np.array_equal(of_large, of_small)


def _ellipses(count, height, width):
    """Detections with masks, the last of which has a hole."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * [width, height]
    rows, columns = np.mgrid[:height, :width]
    found = Instances(
        (height, width), pred_boxes=Boxes(torch.from_numpy(corners).float().view(-1, 4))
    )
    middle, radius = corners.mean(1), np.diff(corners, axis=1)[:, 0] / 2 + 1
    x, y = (columns - middle[:, 0, None, None]), (rows - middle[:, 1, None, None])
    away = (x / radius[:, 0, None, None]) ** 2 + (y / radius[:, 1, None, None]) ** 2
    masks = away < 1
    masks[-1] &= away[-1] > 0.2
    found.pred_masks = torch.from_numpy(masks)
    found.scores, found.pred_classes = torch.linspace(0, 1, count), torch.arange(count) % 2
    return found


@pytest.mark.parametrize(("count", "height", "width"), [(0, 30, 40), (6, 97, 61), (9, 120, 160)])
def test_the_pixels_are_those_of_detectron2(monkeypatch, count, height, width):
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = _ellipses(max(count, 1), height, width)[:count]
    labels, masks = ("cat", "$5"), found.pred_masks.numpy()
    names = [labels[i] for i in found.pred_classes]

    def drawn():
        yield draw_detections(image, found, labels, 200)
        yield draw_segments(image, masks, names, found.scores.tolist(), 200)

    ours = list(drawn())
    monkeypatch.setattr(visualization, "_Visualizer", Visualizer)
    for mine, theirs in zip(ours, drawn(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_figures_are_given_back_at_once():
    """Without the collector of circles, which comes too late for the pixels of figures."""
    found = _ellipses(2, 40, 60)
    heavy = (Figure, FigureCanvasAgg, RendererAgg, AxesImage, VisImage)
    gc.disable()
    try:
        for _ in range(17):
            draw_detections(IMAGE, found, ("cat", "dog"), 40)
            draw_segments(IMAGE, MASKS, ["cat", "dog"], [None, 0.5], 40)
            draw_similarity(IMAGE, np.eye(40, 60, dtype=np.float32), "cat", 40)
        left = [type(o).__name__ for o in gc.get_objects() if type(o) in heavy]
    finally:
        gc.enable()
    assert not left
