"""EXIF orientation: the stored pixels, and what is said before they are needed."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densedet.data import (
    DetectionMapper,
    PanopticMapper,
    RegionMapper,
    RegionTruthMapper,
    SemanticMapper,
    build_test_loader,
    build_train_loader,
    load_coco_format,
    read_image,
)
from densedet.data.images import exif_orientation
from densedet.data.orientation import look_at_images, read_pixels
from densedet.data.segment_map import write_segment_map
from densedet.errors import DatasetError, ImageError
from densedet.regions import Regions
from densedet.vocabulary import Vocabulary

_ORIENTATION = 0x0112
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def _save(path: Path, orientation: int, pixels: np.ndarray = PIXELS) -> Path:
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[_ORIENTATION] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(10))
def test_stored_pixels(orientation: int, tmp_path: Path) -> None:
    path = _save(tmp_path / "a.png", orientation)
    np.testing.assert_array_equal(read_pixels(path, apply_exif=False), PIXELS)
    np.testing.assert_array_equal(read_pixels(path), read_image(path))
    sides = (20, 12) if orientation in (5, 6, 7, 8) else (12, 20)
    assert read_pixels(path).shape[:2] == sides


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("stored", [True, False])
def test_the_message_names_the_tag_and_the_way_out(
    stored: bool, orientation: int, tmp_path: Path
) -> None:
    path = _save(tmp_path / "a.png", orientation)
    width, height = (20, 12) if stored else (12, 20)
    record = {"file_name": str(path), "image_id": 1, "width": width, "height": height}
    right, wrong = (DetectionMapper(False, [], apply_exif=value) for value in (not stored, stored))
    assert right(record)["image"].shape[1:] == (height, width)
    message = rf"EXIF tag turns it by 90 degrees.*set apply_exif={not stored} in the mapper"
    with pytest.raises(DatasetError, match=message):
        wrong(record)
    for build in (build_test_loader, lambda *a: build_train_loader(*a, 1)):
        build([record], right)
        with pytest.raises(DatasetError, match=message):
            build([record], wrong)


MAPPERS: dict[str, Callable[[bool], Any]] = {
    "semantic": lambda value: SemanticMapper(True, [], 3, apply_exif=value),
    "panoptic": lambda value: PanopticMapper(
        True, [], Vocabulary.parse("cat;dog"), apply_exif=value
    ),
    "regions": lambda value: RegionTruthMapper(32, 8, apply_exif=value),
}


@pytest.mark.parametrize("stated", [True, False], ids=["size in the record", "size of the map"])
@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("kind", MAPPERS)
def test_maps_may_be_of_the_stored_or_of_the_upright_image(
    kind: str, stored: bool, stated: bool, tmp_path: Path
) -> None:
    width, height = (20, 12) if stored else (12, 20)
    record: dict[str, Any] = {
        "file_name": str(_save(tmp_path / "a.png", 6)),
        "image_id": 1,
        "sem_seg_file_name": str(tmp_path / "labels.png"),
        "pan_seg_file_name": str(tmp_path / "segments.png"),
        "segments_info": [{"id": 7, "category_id": 1, "isthing": True, "iscrowd": 0}],
        **({"width": width, "height": height} if stated else {}),
    }
    Image.fromarray(np.ones((height, width), dtype=np.uint8)).save(tmp_path / "labels.png")
    write_segment_map(tmp_path / "segments.png", np.full((height, width), 7, dtype=np.uint32))
    sample = MAPPERS[kind](not stored)(record)
    assert sample["image"].shape[1:] == (height, width)
    pixels = read_pixels(tmp_path / "a.png", apply_exif=not stored)
    np.testing.assert_array_equal(sample["image"].permute(1, 2, 0), pixels)
    message = rf"EXIF tag turns it by 90 degrees.*set apply_exif={not stored} in the mapper"
    with pytest.raises(DatasetError, match=message):
        MAPPERS[kind](stored)(record)


def test_the_tag_is_read_from_images_of_the_known_formats_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(PIXELS).save(path, "EPS")
    with pytest.raises(ImageError, match="not an image of a format that is read here"):
        exif_orientation(path)


def test_another_size_is_not_blamed_on_the_tag(tmp_path: Path) -> None:
    record = {"file_name": str(_save(tmp_path / "a.png", 6)), "width": 11, "height": 20}
    with pytest.raises(DatasetError, match="another version of the data set"):
        look_at_images([record], DetectionMapper(False, []))


@pytest.mark.parametrize(
    ("orientation", "square", "warned"),
    [(1, False, False), (2, False, True), (3, False, True), (4, False, True)]
    + [(6, False, False), (6, True, True), (3, True, True)],
)
def test_tags_that_keep_the_size_are_warned_of(
    orientation: int, square: bool, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = PIXELS[:, :12] if square else PIXELS
    path = _save(tmp_path / "a.png", orientation, pixels)
    height, width = read_image(path).shape[:2]
    record = {"file_name": str(path), "width": width, "height": height}
    with caplog.at_level(logging.WARNING, "densedet"):
        look_at_images([record] * 3, DetectionMapper(False, []))
    assert ("3 of 3 images" in caplog.text and "set apply_exif=False" in caplog.text) is warned


def test_a_sample_is_looked_at(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(tiny)
    mapper = DetectionMapper(True, [])
    records = load_coco_format(path, tmp_path, vocabulary)
    build_train_loader(records, mapper, 1)
    (tmp_path / "c.jpg").unlink()
    with pytest.raises(ImageError, match=r"c\.jpg does not exist"):
        build_train_loader(records, mapper, 1)
    tiny["images"][0]["width"] = 61
    del tiny["annotations"][2]["segmentation"]
    path.write_text(json.dumps(tiny))
    with pytest.raises(DatasetError, match=r"b\.jpg is 60x40 .* says 61x40"):
        build_test_loader(load_coco_format(path, tmp_path, vocabulary)[:2], mapper)


def test_what_may_be_unreadable_is_not_looked_at(tmp_path: Path) -> None:
    mapper = RegionMapper(_no_regions, skip_unreadable=True, min_side=1, apply_exif=False)
    path = _save(tmp_path / "a.png", 6)
    records = [{"file_name": "gone.jpg"}, {"file_name": str(path), "image_id": 1}]
    build_train_loader(records, mapper, 1, redraw_empty=True)
    assert mapper(records[0]) is None
    sample = mapper(records[1])
    assert sample is not None and (sample["height"], sample["width"]) == (12, 20)


def _no_regions(record: dict[str, Any], size: tuple[int, int]) -> Regions:
    import torch

    return Regions(torch.zeros(0, 4), torch.zeros(0, 4, dtype=torch.int64))
