"""From a record to an image and its regions."""

import logging
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode
from PIL import Image

from densedet.data import RegionMapper, build_train_loader, read_image
from densedet.errors import ConfigError, DatasetError, ImageError
from densedet.regions import BoxRegions, GridRegions, crop_and_resize, whole_image

BOXES = BoxRegions(shuffle=False, enlarge=1, min_area=0)


def record(path: Path, **changes: Any) -> dict[str, Any]:
    annotation = {
        "bbox": [10, 5, 20, 10],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 3,
        "iscrowd": 0,
    }
    return {"file_name": str(path), "image_id": 7, "annotations": [annotation], **changes}


@pytest.fixture
def image_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    return tmp_path / "a.jpg"


def test_sample(image_file):
    data = record(image_file, width=60, height=40)
    before = pickle.dumps(data)
    sample = RegionMapper(BOXES)(data)
    assert pickle.dumps(data) == before
    assert sample is not None
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), read_image(image_file))
    assert sample["image"].dtype == torch.uint8
    assert sample["regions"].tolist() == [[10, 5, 30, 15]]
    assert sample["crop_rectangles"].tolist() == [[10, 5, 30, 15]]
    assert sample["region_labels"].tolist() == [3]
    rest = {"file_name": str(image_file), "image_id": 7, "height": 40, "width": 60}
    assert {key: sample[key] for key in rest} == rest
    assert len(sample) == 8


def test_without_labels_and_without_a_stated_size(image_file):
    sample = RegionMapper(GridRegions())({"file_name": str(image_file), "image_id": 7})
    assert sample is not None and "region_labels" not in sample
    assert (sample["height"], sample["width"]) == (40, 60)


def test_published_pixels(image_file):
    sample = RegionMapper(BOXES, pil_sizes=(64, 24))(record(image_file))
    plain = RegionMapper(BOXES)(record(image_file))
    assert sample is not None and plain is not None and "image" not in sample
    image, pil = [plain["image"]], partial(crop_and_resize, backend="pil")
    assert torch.equal(sample["student"], pil(image, [whole_image(image[0])], 64, "corner")[0])
    assert torch.equal(sample["crops"], pil(image, [plain["crop_rectangles"]], 24, "centre"))


def test_small_images_are_not_used(image_file):
    assert RegionMapper(BOXES, min_side=41)(record(image_file)) is None
    assert RegionMapper(BOXES, min_side=40)(record(image_file)) is not None


def test_unreadable_images(tmp_path, caplog):
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match=re.escape(str(tmp_path / "b.jpg"))):
        RegionMapper(BOXES)(record(tmp_path / "b.jpg"))
    with caplog.at_level(logging.WARNING):
        assert RegionMapper(BOXES, skip_unreadable=True)(record(tmp_path / "b.jpg")) is None
    assert str(tmp_path / "b.jpg") in caplog.text


def test_wrong_size(image_file):
    with pytest.raises(DatasetError, match=r"a.jpg is 60x40 pixels .* says 61x40"):
        RegionMapper(BOXES)(record(image_file, width=61, height=40))


def test_wrong_settings():
    with pytest.raises(ConfigError, match=r"pil_sizes=\(64,\)"):
        RegionMapper(BOXES, pil_sizes=(64,))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_in_the_loader(image_file, num_workers):
    """Workers give what the main process gives, and another image for one that is too small."""
    Image.new("RGB", (60, 9)).save(image_file.parent / "small.png")
    records = [record(image_file), record(image_file.parent / "small.png")]
    loader = build_train_loader(
        records,
        RegionMapper(GridRegions()),
        total_batch_size=2,
        seed=3,
        num_workers=num_workers,
        redraw_empty=True,
    )
    batch = next(iter(loader))
    expected = next(
        iter(build_train_loader(records, RegionMapper(GridRegions()), 2, seed=3, redraw_empty=True))
    )
    assert [sample["file_name"] for sample in batch] == [str(image_file)] * 2
    for sample, same in zip(batch, expected, strict=True):
        assert torch.equal(sample["regions"], same["regions"])
        assert torch.equal(sample["image"], same["image"])
