"""The mapper and its two resizing schemes."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from PIL import Image

from densedet.data import (
    DetectionMapper,
    ResizeShortestEdge,
    large_scale_jitter,
    load_coco_format,
    read_image,
    resize_longest_side,
)
from densedet.errors import ConfigError, DatasetError, ImageError
from densedet.vocabulary import Vocabulary

Records = list[dict[str, Any]]


@pytest.fixture
def records(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Callable[..., Path], tmp_path: Path
) -> Records:
    return copy.deepcopy(load_coco_format(write(tiny), tmp_path, vocabulary))


def test_plain_training_sample(records: Records) -> None:
    sample = DetectionMapper(True, [], use_instance_mask=True)(records[0])
    image = read_image(records[0]["file_name"])
    assert sample["image"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
    instances = sample["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[5, 6, 25, 16], [30, 30, 40, 50]]
    assert instances.gt_classes.tolist() == [0, 1]
    assert instances.gt_masks.tensor.flatten(1).sum(1).tolist() == [200, 200]
    assert "annotations" not in sample and "annotations" in records[0], "the record is untouched"


@pytest.mark.parametrize("mask_format", ["bitmask", "polygon"])
@pytest.mark.parametrize("recompute_boxes", [False, True])
def test_equals_detectron2s_mapper(
    mask_format: str, recompute_boxes: bool, records: Records
) -> None:
    settings: dict[str, Any] = {"use_instance_mask": True, "recompute_boxes": recompute_boxes}
    augmentations = [T.ResizeScale(0.5, 2.0, 64, 64), T.FixedSizeCrop((64, 64), pad=False)]
    ours = DetectionMapper(True, augmentations, mask_format=mask_format, **settings)
    theirs = DatasetMapper(
        True,
        augmentations=augmentations,
        image_format="RGB",
        instance_mask_format=mask_format,
        **settings,
    )
    for seed in range(8):
        np.random.seed(seed)
        sample = ours(records[0])
        np.random.seed(seed)
        expected = theirs(records[0])
        assert torch.equal(sample["image"], expected["image"])
        found, wanted = sample["instances"], expected["instances"]
        assert found.gt_classes.tolist() == wanted.gt_classes.tolist()
        assert torch.equal(found.gt_boxes.tensor, wanted.gt_boxes.tensor)
        if len(found):
            boxes = found.gt_masks.get_bounding_boxes(), wanted.gt_masks.get_bounding_boxes()
            assert torch.equal(boxes[0].tensor, boxes[1].tensor)


def test_crowds_are_left_out(records: Records) -> None:
    sample = DetectionMapper(True, [])(records[1])
    assert len(sample["instances"]) == 0


def test_what_a_crop_cuts_away_is_dropped(records: Records) -> None:
    for mask_format in ("bitmask", "polygon"):
        mapper = DetectionMapper(
            True, [T.CropTransform(0, 0, 30, 30)], use_instance_mask=True, mask_format=mask_format
        )
        instances = mapper(records[0])["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[5, 6, 25, 16]]
        mapper.augmentations = T.AugmentationList([T.CropTransform(0, 40, 20, 10)])
        assert len(mapper(records[0])["instances"]) == 0


@pytest.mark.parametrize(("side", "kept"), [(0.0099, 0), (0.0101, 1)])
def test_thin_boxes_are_dropped(side: float, kept: int, records: Records) -> None:
    record = records[0]
    del record["annotations"][1]
    record["annotations"][0]["bbox"] = [10, 10, side, 5]
    assert len(DetectionMapper(True, [])(record)["instances"]) == kept


def test_inference_sample(records: Records) -> None:
    sample = DetectionMapper(False, resize_longest_side(100))(records[1])
    assert sample["image"].shape == (3, 67, 100)
    assert (sample["height"], sample["width"]) == (40, 60)
    assert "instances" not in sample and "annotations" not in sample


def test_size_that_is_not_the_records(records: Records) -> None:
    records[0]["width"] = 51
    with pytest.raises(DatasetError, match=r"a\.jpg is 50x50 pixels .* says 51x50"):
        DetectionMapper(False, [])(records[0])


def test_size_is_added_where_the_record_has_none(records: Records) -> None:
    sample = DetectionMapper(False, [])({"file_name": records[1]["file_name"]})
    assert (sample["height"], sample["width"]) == (40, 60)


def test_bad_images(records: Records) -> None:
    path = Path(records[0]["file_name"])
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ImageError, match=r"a\.jpg is truncated"):
        DetectionMapper(True, [])(records[0])
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.jpg does not exist"):
        DetectionMapper(True, [])(records[0])


def test_masks_that_are_missing_or_of_another_format(records: Records) -> None:
    records[1]["annotations"][0]["iscrowd"] = 0
    with pytest.raises(DatasetError, match=r"b\.jpg .* run-length mask; set mask_format='bitmask'"):
        DetectionMapper(True, [], use_instance_mask=True, mask_format="polygon")(records[1])
    masks = DetectionMapper(True, [], use_instance_mask=True)(records[1])["instances"].gt_masks
    assert masks.tensor.sum() == 2400
    del records[1]["annotations"][0]["segmentation"]
    with pytest.raises(DatasetError, match=r"b\.jpg .* has no segmentation"):
        DetectionMapper(True, [], use_instance_mask=True)(records[1])


def test_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="'rle'"):
        DetectionMapper(True, [], mask_format="rle")
    with pytest.raises(ConfigError, match="needs masks"):
        DetectionMapper(True, [], recompute_boxes=True)
    with pytest.raises(ConfigError, match="image size 0"):
        large_scale_jitter(0)


def test_large_scale_jitter() -> None:
    image = np.zeros((300, 400, 3), dtype=np.uint8)
    image[:, 200:] = 255
    augmentations = T.AugmentationList(large_scale_jitter(128))
    np.random.seed(0)
    sizes, flips = [], 0
    for _ in range(300):
        aug_input = T.AugInput(image)
        flips += any(isinstance(t, T.HFlipTransform) for t in augmentations(aug_input).transforms)
        sizes.append(aug_input.image.shape[:2])
    heights, widths = np.array(sizes).T
    # The scaled image is 128 s wide and 96 s high, s uniform in 0.1 .. 2, cut to 128.
    assert widths.max() == heights.max() == 128
    assert 12 <= widths.min() < 20 and 9 <= heights.min() < 15
    assert abs((widths == 128).mean() - 1.0 / 1.9) < 0.09
    uncut = widths < 128
    assert np.abs(heights[uncut] - 0.75 * widths[uncut]).max() <= 1
    assert 0.4 < flips / 300 < 0.6


def test_large_scale_jitter_draws_row_and_column_apart() -> None:
    """At twice the size every part of the image is seen, whatever row and column it has."""
    augmentations = T.AugmentationList(large_scale_jitter(64, 2.0, 2.0, flip=0.0))
    np.random.seed(0)
    seen = np.zeros((96, 128), dtype=bool)
    corners = []
    for _ in range(400):
        crop = augmentations(T.AugInput(np.zeros((96, 128, 3), dtype=np.uint8))).transforms[1]
        corners.append((crop.y0, crop.x0))
        seen[crop.y0 : crop.y0 + crop.h, crop.x0 : crop.x0 + crop.w] = True
    rows, columns = np.array(corners).T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 32, 0, 64)
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.15
    assert seen.mean() > 0.99


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(427, 640, (427, 640)), (240, 320, (480, 640)), (1333, 750, (640, 360)), (7, 7, (640, 640))],
)
def test_resize_longest_side(height: int, width: int, expected: tuple[int, int]) -> None:
    aug_input = T.AugInput(np.zeros((height, width, 3), dtype=np.uint8))
    T.AugmentationList(resize_longest_side(640))(aug_input)
    assert aug_input.image.shape[:2] == expected


@pytest.mark.parametrize("shape", [(1, 400), (1000, 3)])
def test_narrow_images_keep_a_pixel(shape: tuple[int, int]) -> None:
    np.random.seed(0)
    shortest = [ResizeShortestEdge(64, max_size=64, sample_style="choice")]
    for resizing in (resize_longest_side(64), large_scale_jitter(64), shortest):
        for _ in range(20):
            aug_input = T.AugInput(np.full((*shape, 3), 7, dtype=np.uint8))
            T.AugmentationList(resizing)(aug_input)
            height, width = aug_input.image.shape[:2]
            assert min(height, width) == 1 < max(height, width) <= 64
            assert (aug_input.image == 7).all()


def test_exif_turned_image_is_compared_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "JPEG", exif=exif)
    (tmp_path / "t.jpg").write_bytes(stream.getvalue())
    record = {"file_name": str(tmp_path / "t.jpg"), "width": 20, "height": 30}
    assert DetectionMapper(False, [])(record)["image"].shape == (3, 30, 20)
