"""From segment maps to labels of pixels and of things."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from densedet.data import PanopticMapper
from densedet.errors import ConfigError, DatasetError, ImageError
from densedet.vocabulary import Category, Vocabulary

WORDS = Vocabulary(
    (
        Category("sky", kind="stuff"),
        Category("cat"),
        Category("sand", kind="stuff", seen=False),
        Category("dog"),
        Category("zebra", seen=False),
    )
)
# ids beyond 8 bits; 7 belongs to no segment
IDS = np.array(
    [
        [300, 300, 300, 300, 300, 300],
        [300, 70000, 70000, 5, 5, 7],
        [9, 70000, 70000, 5, 12, 7],
        [9, 9, 20, 20, 12, 0],
    ],
    dtype=np.int64,
)
SEGMENTS = [
    (300, 0, 0),  # sky
    (20, 2, 0),  # sand, unseen
    (70000, 3, 0),  # dog
    (5, 1, 0),  # cat
    (12, 4, 0),  # zebra, unseen
    (9, 1, 1),  # a crowd of cats
]
LABELS = torch.tensor(
    [
        [0, 0, 0, 0, 0, 0],
        [0, 3, 3, 1, 1, 255],
        [1, 3, 3, 1, 255, 255],
        [1, 1, 255, 255, 255, 255],
    ]
)


def write_map(path: Path, ids: np.ndarray) -> None:
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An image of 6 x 4 pixels whose red is 10 times the column, and its segments."""
    red = np.tile(np.arange(6, dtype=np.uint8) * 10, (4, 1))
    Image.fromarray(np.stack([red, red * 0 + 7, red * 0], -1)).save(tmp_path / "a.png")
    write_map(tmp_path / "segments.png", IDS)
    return {
        "file_name": str(tmp_path / "a.png"),
        "pan_seg_file_name": str(tmp_path / "segments.png"),
        "image_id": 3,
        "height": 4,
        "width": 6,
        "segments_info": [
            {"id": i, "category_id": k, "isthing": WORDS.kinds[k] == "thing", "iscrowd": crowd}
            for i, k, crowd in SEGMENTS
        ],
    }


def test_pixels_and_things(record: dict[str, Any]) -> None:
    sample = PanopticMapper(True, [], WORDS)(record)
    assert len(record["segments_info"]) == 6 and "segments_info" not in sample
    assert (sample["image"].shape, sample["image"].dtype) == ((3, 4, 6), torch.uint8)
    assert set(sample["image"][1].unique().tolist()) == {7}, "red, green, blue"
    assert sample["sem_seg"].dtype == torch.int64 and torch.equal(sample["sem_seg"], LABELS)
    instances = sample["instances"]
    assert instances.image_size == (4, 6)
    assert instances.gt_classes.tolist() == [3, 1], "neither crowds nor unseen"
    assert instances.gt_boxes.tensor.tolist() == [[1, 1, 3, 3], [3, 1, 5, 3]]
    masks = np.stack([IDS == 70000, IDS == 5])
    assert torch.equal(instances.gt_masks.tensor, torch.from_numpy(masks))


def test_all_are_labelled_where_all_are_seen(record: dict[str, Any]) -> None:
    known = WORDS.with_unseen([])
    sample = PanopticMapper(True, [], known, ignore_value=5)(record)
    assert sample["sem_seg"].tolist()[3] == [1, 1, 2, 2, 4, 5]
    assert sample["instances"].gt_classes.tolist() == [3, 1, 4]


def test_image_labels_and_things_stay_together(record: dict[str, Any]) -> None:
    flip = [T.RandomFlip(prob=1.0), T.CropTransform(0, 0, 4, 3)]
    sample = PanopticMapper(True, flip, WORDS)(record)
    assert (sample["height"], sample["width"]) == (4, 6), "those of the file"
    assert sample["image"][0, 0].tolist() == [50, 40, 30, 20]
    assert torch.equal(sample["sem_seg"], LABELS.flip(1)[:3, :4])
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[3, 1, 4, 3], [1, 1, 3, 3]], "cut by the crop"
    away = PanopticMapper(True, [T.CropTransform(0, 0, 3, 1)], WORDS)(record)
    assert len(away["instances"]) == 0 and away["sem_seg"].tolist() == [[0, 0, 0]]
    assert away["instances"].gt_boxes.tensor.shape == (0, 4)
    assert away["instances"].gt_masks.tensor.shape == (0, 1, 3)


def test_padding_has_no_segment(record: dict[str, Any]) -> None:
    sample = PanopticMapper(True, [T.FixedSizeCrop((6, 8), pad=True)], WORDS, ignore_value=9)(
        record
    )
    labels = sample["sem_seg"]
    assert torch.equal(labels[:4, :6], torch.where(LABELS == 255, 9, LABELS))
    assert (labels[4:] == 9).all() and (labels[:, 6:] == 9).all()
    assert sample["instances"].gt_classes.tolist() == [3, 1]


@pytest.mark.parametrize("many", [False, True])
def test_labels_are_not_mixed_by_resizing(
    record: dict[str, Any], many: bool, tmp_path: Path
) -> None:
    """Also where the segments are too many for 8 bits."""
    if many:
        extra = np.arange(400).reshape(-1, 1) + 80000
        ids = np.zeros((404, 6), dtype=np.int64)
        ids[:4], ids[4:] = IDS, extra
        write_map(tmp_path / "segments.png", ids)
        Image.new("RGB", (6, 404)).save(record["file_name"])
        record["height"] = 404
        stuff = [
            {"id": int(i), "category_id": 0, "isthing": False, "iscrowd": 0} for i in extra[:, 0]
        ]
        record["segments_info"] = stuff + record["segments_info"]
    rows = record["height"]
    resize = [T.ResizeTransform(rows, 6, 10 * rows, 60)]
    sample = PanopticMapper(True, resize, WORDS)(record)
    expected = LABELS.repeat_interleave(10, 0).repeat_interleave(10, 1)
    assert torch.equal(sample["sem_seg"][:40], expected)
    assert (sample["sem_seg"][40:] == 0).all()
    boxes = sample["instances"].gt_boxes.tensor.tolist()
    assert boxes == [[10, 10, 30, 30], [30, 10, 50, 30]]


def test_testing_needs_no_segments(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "segments.png").unlink()
    sample = PanopticMapper(False, [T.RandomFlip(prob=1.0)], WORDS)(record)
    assert "sem_seg" not in sample and "instances" not in sample
    assert sample["segments_info"] == record["segments_info"] and sample["image_id"] == 3
    with pytest.raises(ImageError, match=r"segments\.png does not exist"):
        PanopticMapper(True, [], WORDS)(record)


def test_no_segment_at_all(record: dict[str, Any]) -> None:
    sample = PanopticMapper(True, [], WORDS)({**record, "segments_info": []})
    assert (sample["sem_seg"] == 255).all() and len(sample["instances"]) == 0


def test_records_that_do_not_fit(record: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"segment 12 of .*segments\.png has the category 4"):
        PanopticMapper(True, [], Vocabulary(WORDS.categories[:4]))(record)
    with pytest.raises(DatasetError, match="annotation record says 9x4"):
        PanopticMapper(True, [], WORDS)({**record, "width": 9})
    without = {k: v for k, v in record["segments_info"][0].items() if k != "isthing"}
    with pytest.raises(DatasetError, match=r"segment 300 of .*segments\.png lacks isthing"):
        PanopticMapper(True, [], WORDS)({**record, "segments_info": [without]})
    write_map(tmp_path / "segments.png", IDS[:, :5])
    with pytest.raises(DatasetError, match=r"a\.png is 6x4 .*segments\.png is 5x4"):
        PanopticMapper(True, [], WORDS)(record)


def test_an_ignored_label_that_is_a_category() -> None:
    with pytest.raises(ConfigError, match="ignore_value=4 is the label of a category; .* from 5"):
        PanopticMapper(True, [], WORDS, ignore_value=4)
