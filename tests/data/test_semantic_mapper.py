"""Images and label maps through the same augmentations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from densedet.data import LabelReader, PhotometricDistortion, ResizeToFit, SemanticMapper
from densedet.errors import ConfigError, DatasetError, ImageError

LABELS = np.arange(24, dtype=np.uint8).reshape(4, 6) % 4


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    """An image of 6 x 4 pixels whose red is 10 times the label, and its labels (0 to 3)."""
    labels = LABELS.copy()
    labels[0, 0] = 255
    pixels = np.stack([LABELS * 10, LABELS * 0 + 7, LABELS * 0], axis=-1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "labels.png")
    names = {"file_name": "a.png", "sem_seg_file_name": "labels.png"}
    return {key: str(tmp_path / name) for key, name in names.items()}


def test_image_and_labels_stay_together(record: dict[str, Any]) -> None:
    before = dict(record)
    mapper = SemanticMapper(True, [T.RandomFlip(prob=1.0), T.RandomCrop("absolute", (3, 4))], 4)
    sample = mapper(record)
    assert record == before
    assert (sample["height"], sample["width"]) == (4, 6), "those of the file"
    image, labels = sample["image"], sample["sem_seg"]
    assert (image.shape, image.dtype) == ((3, 3, 4), torch.uint8)
    assert (labels.shape, labels.dtype) == ((3, 4), torch.int64)
    valid = labels != 255
    assert torch.equal(image[0][valid].long(), 10 * labels[valid])
    assert set(image[1].unique().tolist()) == {7}, "red, green, blue"


def test_labels_are_not_mixed_by_resizing(record: dict[str, Any]) -> None:
    sample = SemanticMapper(True, [ResizeToFit(60, 40), PhotometricDistortion()], 4)(record)
    assert sample["image"].shape == (3, 40, 60)
    expected = torch.from_numpy(LABELS.astype(np.int64)).repeat_interleave(10, 0)
    expected = expected.repeat_interleave(10, 1)
    expected[:10, :10] = 255
    assert torch.equal(sample["sem_seg"], expected)


def test_testing_needs_no_labels(record: dict[str, Any], tmp_path: Path) -> None:
    for given in (record, {"file_name": record["file_name"]}):
        sample = SemanticMapper(False, [ResizeToFit(12, 8)], 4)(given)
        assert "sem_seg" not in sample
        assert sample["image"].shape == (3, 8, 12)
        assert (sample["height"], sample["width"]) == (4, 6)
    (tmp_path / "labels.png").unlink()
    for is_train in (True, False):
        with pytest.raises(ImageError, match=r"labels\.png does not exist"):
            SemanticMapper(is_train, [], 4)(record)


def test_a_palette_image_gives_its_numbers(record: dict[str, Any], tmp_path: Path) -> None:
    image = Image.fromarray(LABELS)
    image.putpalette([200, 100, 50] * 256)  # makes it a palette image: every number, one colour
    image.save(tmp_path / "labels.png")
    assert torch.equal(
        SemanticMapper(True, [], 4)(record)["sem_seg"], torch.from_numpy(LABELS).long()
    )


@pytest.mark.parametrize("shape", [(6, 4), (4, 5)])
def test_labels_of_another_size(record: dict[str, Any], tmp_path: Path, shape: Any) -> None:
    Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(tmp_path / "labels.png")
    size = f"{shape[1]}x{shape[0]}"
    for is_train in (True, False):
        with pytest.raises(DatasetError, match=rf"labels\.png is {size} .*a\.png is 6x4"):
            SemanticMapper(is_train, [], 4)(record)


def test_labels_that_are_no_class(record: dict[str, Any]) -> None:
    with pytest.raises(DatasetError, match=r"labels\.png has the label 3, .* 3 classes \(0 to 2\)"):
        SemanticMapper(True, [], 3)(record)
    with pytest.raises(DatasetError, match="label 255, .* ignored 254; were the labels prepared"):
        SemanticMapper(True, [], 4, ignore_value=254)(record)


def test_the_evaluator_writes_into_what_is_read(record: dict[str, Any]) -> None:
    labels = LabelReader(4)(record["sem_seg_file_name"], dtype=int)
    assert labels.dtype == np.int64 and labels[0, 0] == 255
    labels[0, 0] = 4
    assert np.array_equal(labels[1:], LABELS[1:])
    assert LabelReader(4)(record["sem_seg_file_name"]).dtype == np.uint8


@pytest.mark.parametrize("mode", ["RGB", "I;16", "1"])
def test_labels_that_are_not_8_bit(record: dict[str, Any], tmp_path: Path, mode: str) -> None:
    Image.new(mode, (6, 4)).save(tmp_path / "labels.png")
    with pytest.raises(DatasetError, match=rf"labels\.png has Pillow's mode {mode}; write it as"):
        SemanticMapper(True, [], 4)(record)


def test_labels_of_16_bits(record: dict[str, Any], tmp_path: Path) -> None:
    labels = LABELS.astype(np.uint16) + 843
    labels[0, 0] = 65535
    record["sem_seg_file_name"] = str(tmp_path / "labels.tif")
    Image.fromarray(labels).save(tmp_path / "labels.tif")
    augmentations = [ResizeToFit(60, 40), T.RandomFlip(prob=1.0)]
    sample = SemanticMapper(True, augmentations, 847, 65535)(record)["sem_seg"]
    expected = labels.astype(np.int64).repeat(10, axis=0).repeat(10, axis=1)[:, ::-1].copy()
    assert torch.equal(sample, torch.from_numpy(expected))
    read = LabelReader(847, 65535)(record["sem_seg_file_name"])
    assert read.dtype == np.uint16 and np.array_equal(read, labels)
    with pytest.raises(DatasetError, match=r"label 846, which is none of the 846 classes \(0 to"):
        SemanticMapper(True, [], 846, 65535)(record)
    with pytest.raises(DatasetError, match="mode I;16; write it as an 8-bit grey PNG"):
        SemanticMapper(True, [], 4)(record)
    Image.fromarray(LABELS).save(tmp_path / "labels.tif")
    with pytest.raises(DatasetError, match=r"labels\.tif has Pillow's mode L; write .* a 16-bit"):
        LabelReader(847, 65535)(tmp_path / "labels.tif")


def test_16_bit_labels_of_the_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "labels.tif"
    data = np.array([[258, 65535]], dtype=">u2").tobytes()
    Image.frombytes("I;16B", (2, 1), data).save(path)
    with Image.open(path) as image:
        assert image.mode == "I;16B"
    labels = LabelReader(847, 65535)(path)
    assert labels.dtype == np.uint16 and labels.tolist() == [[258, 65535]]


def test_broken_files(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ImageError, match=r"labels\.png is truncated or corrupt"):
        SemanticMapper(True, [], 4)(record)
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"labels\.png is not an image"):
        SemanticMapper(True, [], 4)(record)
    with pytest.raises(DatasetError, match="annotation record says 9x4"):
        SemanticMapper(True, [], 4)({**record, "width": 9})


@pytest.mark.parametrize(("classes", "ignored"), [(4, 3), (4, 65536), (0, 255), (256, 255)])
def test_an_ignored_label_that_cannot_be(classes: int, ignored: int) -> None:
    with pytest.raises(ConfigError, match=f"ignore_value={ignored}"):
        SemanticMapper(True, [], classes, ignored)
