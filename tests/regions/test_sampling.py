"""Choosing regions: the splits, the order of operations, the reference vectors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densedet.errors import ConfigError, DatasetError
from densedet.regions import (
    BoxRegions,
    GridRegions,
    crop_rectangles,
    grid_cells,
    grid_splits,
    scale_boxes,
)

XYXY, XYWH = 0, 1


def record(*boxes: list[float], **changes: Any) -> dict[str, Any]:
    """A record whose boxes (x, y, width, height) have the categories 0, 1, 2, ..."""
    annotations = [
        {"bbox": box, "bbox_mode": XYWH, "category_id": i, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    return {"file_name": "a.jpg", "annotations": annotations, **changes}


@pytest.fixture(autouse=True)
def _seed():
    np.random.seed(0)


def test_grid_splits():
    splits = grid_splits()
    assert len(splits) == 24
    assert splits[:5] == ((1, 1), (1, 2), (2, 1), (2, 2), (2, 3))
    assert splits[-4:] == ((6, 3), (6, 4), (6, 5), (6, 6))
    assert grid_splits(1) == ((1, 1),)


def test_grid_cells():
    assert grid_cells((20, 30), 2, 3).tolist() == [
        [0, 0, 10, 10],
        [10, 0, 20, 10],
        [20, 0, 30, 10],
        [0, 10, 10, 20],
        [10, 10, 20, 20],
        [20, 10, 30, 20],
    ]
    assert grid_cells((7, 5), 1, 1).tolist() == [[0, 0, 5, 7]]


def test_grid_regions_are_cells_of_one_split():
    seen = set()
    for _ in range(300):
        regions = GridRegions(max_split=3)({}, (90, 120))
        assert regions.labels is None and regions.boxes.dtype == torch.float32
        boxes = {tuple(box) for box in regions.boxes.tolist()}
        split = next(
            (m, n)
            for m, n in grid_splits(3)
            if boxes == {tuple(cell) for cell in grid_cells((90, 120), m, n).tolist()}
        )
        assert torch.equal(regions.rectangles, crop_rectangles(regions.boxes, (90, 120)))
        seen.add(split)
    assert seen == set(grid_splits(3))


def test_grid_regions_are_shuffled_and_limited():
    regions = [GridRegions(max_regions=5, max_cells=6)({}, (60, 60)) for _ in range(200)]
    counts = {len(r.boxes) for r in regions}
    assert counts == {1, 2, 4, 5}  # of 1, 2, 4, 6 cells
    of_six = {tuple(map(tuple, r.boxes.tolist())) for r in regions if len(r.boxes) == 5}
    assert len(of_six) > 20
    assert any(boxes[0][:2] == (40.0, 30.0) for boxes in of_six)  # the last cell of 2 x 3


def test_grid_regions_follow_numpys_generator():
    first = GridRegions()({}, (60, 80))
    np.random.seed(0)
    assert torch.equal(GridRegions()({}, (60, 80)).boxes, first.boxes)


def test_max_cells_leaves_out_splits():
    assert GridRegions(max_cells=4).splits == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_boxes_in_file_order():
    """As the RegionCLIP baseline takes them: the first ones, not enlarged, no area filter."""
    source = BoxRegions(max_regions=2, enlarge=1, min_area=0, max_area=np.inf, shuffle=False)
    regions = source(record([10, 10, 4.6, 1], [0, 0, 100, 80], [5, 5, 5, 5]), (80, 100))
    torch.testing.assert_close(
        regions.boxes, torch.tensor([[10, 10, 14.6, 11], [0, 0, 100, 80]]), rtol=0, atol=1e-5
    )
    assert regions.rectangles.tolist() == [[10, 10, 15, 11], [0, 0, 100, 80]]
    assert regions.labels is not None and regions.labels.tolist() == [0, 1]
    assert regions.labels.dtype == torch.int64


def test_first_ones_then_the_area_filter():
    boxes = [[0, 0, 4, 4], [0, 0, 7.9, 8], [0, 0, 10, 10], [0, 0, 20, 20]]
    source = BoxRegions(max_regions=3, shuffle=False)
    assert source(record(*boxes), (40, 40)).boxes.tolist() == [[0, 0, 10, 10]]
    limited = BoxRegions(max_regions=4, shuffle=False, min_area=100, max_area=399)
    assert limited(record(*boxes), (40, 40)).boxes.tolist() == [[0, 0, 10, 10]]


def test_the_crop_is_enlarged_and_clipped():
    regions = BoxRegions(shuffle=False)(record([0, 10, 20, 40]), (50, 100))
    assert regions.boxes.tolist() == [[0, 10, 20, 50]]
    assert regions.rectangles.tolist() == [[0, 0, 25, 50]]


def test_shuffling_comes_before_the_limit():
    boxes = [[i, 0, 10.0 + i, 10] for i in range(30)]
    drawn = [BoxRegions(max_regions=5)(record(*boxes), (50, 100)) for _ in range(60)]
    assert {len(r.boxes) for r in drawn} == {5}
    assert {int(label) for r in drawn for label in r.labels} == set(range(30))
    for regions in drawn:
        for box, label in zip(regions.boxes.tolist(), regions.labels.tolist(), strict=True):
            assert box == [label, 0, 10 + 2 * label, 10]


@pytest.mark.parametrize("boxes", [[], [[0, 0, 5, 5], [3, 3, 2, 2]]])
@pytest.mark.parametrize(
    ("size", "expected"),
    [((50, 101), [25, 12]), ((63, 103), [25, 15]), ((64, 104), [26, 16]), ((3, 2), [1, 1])],
)
def test_fallback(boxes, size, expected):
    """A quarter of each side, rounded down, for the student and for the teacher."""
    regions = BoxRegions()(record(*boxes), size)
    assert regions.boxes.tolist() == regions.rectangles.tolist() == [[0, 0, *expected]]
    assert regions.boxes.dtype == torch.float32 and regions.rectangles.dtype == torch.int64
    assert regions.labels.tolist() == [-1]


def test_crowds_are_left_out():
    data = record([0, 0, 20, 20], [20, 20, 20, 20])
    data["annotations"][0]["iscrowd"] = 1
    assert BoxRegions()(data, (50, 50)).labels.tolist() == [1]


@pytest.mark.parametrize("mode", [XYXY, XYWH])
def test_proposals_of_detectron2(mode):
    boxes = np.array([[10, 10, 30, 40], [0, 0, 3, 3]], dtype=np.float32)
    data = {"proposal_boxes": boxes, "proposal_bbox_mode": mode}
    regions = BoxRegions("proposals", enlarge=1, shuffle=False)(data, (60, 60))
    expected = [10, 10, 30, 40] if mode == XYXY else [10, 10, 40, 50]
    assert regions.boxes.tolist() == [expected]
    assert regions.rectangles.tolist() == [expected]
    assert regions.labels is None
    assert boxes.tolist() == [[10, 10, 30, 40], [0, 0, 3, 3]]  # the record is left as it was
    assert BoxRegions("proposals")({"proposal_boxes": boxes[:0]}, (60, 60)).labels is None


@pytest.mark.parametrize(
    ("data", "source", "message"),
    [
        ({"file_name": "a.jpg"}, "annotations", "image a.jpg has no 'annotations'"),
        ({"file_name": "a.jpg"}, "proposals", "image a.jpg has no 'proposal_boxes'"),
        (record([0, 0, np.nan, 5]), "annotations", "image a.jpg has boxes that are not finite"),
        (
            {"file_name": "a.jpg", "proposal_boxes": [[0, 0, 5, 5, 9]], "proposal_bbox_mode": 4},
            "proposals",
            "image a.jpg has boxes of mode 4",
        ),
        (
            {"file_name": "a.jpg", "proposal_boxes": [[0, 0, 5, 5, 9]]},
            "proposals",
            "image a.jpg has boxes of shape",
        ),
    ],
)
def test_wrong_records(data, source, message):
    with pytest.raises(DatasetError, match=message):
        BoxRegions(source)(data, (50, 50))


def test_wrong_settings():
    with pytest.raises(ConfigError, match="max_split=0"):
        GridRegions(max_split=0)
    with pytest.raises(ConfigError, match="max_cells=0"):
        GridRegions(max_cells=0)
    with pytest.raises(ConfigError, match="source 'masks'"):
        BoxRegions("masks")
    with pytest.raises(ConfigError, match="min_area=2, max_area=1"):
        BoxRegions(min_area=2, max_area=1)


@pytest.mark.golden
def test_golden_splits_and_cells(golden_dir, golden_index):
    arrays = np.load(golden_dir / "grid.npz")
    pairs = [tuple(pair) for pair in arrays["pairs"].tolist()]
    assert list(grid_splits(max(max(pair) for pair in pairs))) == pairs
    first = np.cumsum([0] + [rows * columns for rows, columns in pairs])
    assert first.tolist() == arrays["first_cell"].tolist()
    for height, width in golden_index["grid"]["sizes"]:
        size, tag = (height, width), f"{height}x{width}"
        cells = torch.cat([grid_cells(size, *pair) for pair in pairs])
        assert np.array_equal(crop_rectangles(cells, size), arrays[f"{tag}/crop_rects"])
        for side in golden_index["grid"]["S"]:
            expected = torch.from_numpy(arrays[f"{tag}/student_boxes_S{side}"])
            found = scale_boxes(cells, size, side) / side
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.fixture
def proposals(golden_dir: Path) -> dict[str, Any]:
    arrays = np.load(golden_dir / "grid.npz")
    data = json.loads((golden_dir / "proposals.json").read_text(encoding="utf-8"))
    names = [name for name in arrays if name.startswith("proposals/")]
    return {**{name.partition("/")[2]: arrays[name] for name in names}, **data}


@pytest.mark.golden
def test_golden_proposals(proposals):
    size, side = tuple(proposals["image_hw"]), int(proposals["S"])
    source = BoxRegions(max_regions=len(proposals["bbox_xywh"]), shuffle=False)
    regions = source(record(*proposals["bbox_xywh"]), size)
    assert regions.labels.tolist() == np.flatnonzero(proposals["kept"]).tolist()
    assert np.array_equal(regions.rectangles, proposals["crop_rects"])
    expected = torch.from_numpy(proposals["student_boxes"])
    found = scale_boxes(regions.boxes, size, side) / side
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.golden
def test_golden_fallback(proposals):
    size, side = tuple(proposals["image_hw"]), int(proposals["S"])
    regions = BoxRegions()(record(), size)
    assert regions.rectangles[0].tolist() == proposals["fallback_crop_rect"].tolist()
    expected = torch.from_numpy(proposals["fallback_student_box"])
    found = scale_boxes(regions.boxes, size, side)[0] / side
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
