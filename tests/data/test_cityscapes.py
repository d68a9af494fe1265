"""Cityscapes on small files of the official layout."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from densedet.data.cityscapes import register_cityscapes
from densedet.data.prepare import prepare_dataset
from densedet.data.segment_map import read_segment_map
from densedet.errors import DatasetError, ImageError

# road, sky, the ego vehicle (not evaluated), a car, a group of cars, a caravan (not evaluated)
INSTANCES = np.array([[7, 7, 23], [1, 26001, 26], [7, 26001, 29]], dtype=np.uint16)
NAMES = {"train": "aachen_000000_000019", "val": "ulm_000001_000019"}


@pytest.fixture
def root(tmp_path: Path, save: Callable[..., Path]) -> Path:
    for part, name in NAMES.items():
        city = name.split("_")[0]
        save(
            f"cityscapes/leftImg8bit/{part}/{city}/{name}_leftImg8bit.png",
            np.zeros((3, 3, 3), "u1"),
        )
        labels = np.where(INSTANCES < 1000, INSTANCES, INSTANCES // 1000).astype(np.uint8)
        stem = f"cityscapes/gtFine/{part}/{city}/{name}_gtFine"
        save(f"{stem}_labelIds.png", labels)
        save(f"{stem}_instanceIds.png", INSTANCES)
    return tmp_path


def test_semantic(root: Path) -> None:
    prepare_dataset("cityscapes", root, any_count=True)
    (record,) = DatasetCatalog.get("cityscapes_semantic_val")
    image = root / "cityscapes/leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png"
    assert record["file_name"] == str(image)
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    assert labels.tolist() == [[0, 0, 10], [255, 13, 13], [0, 13, 255]]
    classes = MetadataCatalog.get("cityscapes_semantic_val").stuff_classes
    assert (classes[0], classes[10], classes[13]) == ("road", "sky", "car")


def test_panoptic(root: Path) -> None:
    contents = prepare_dataset("cityscapes", root, any_count=True)
    assert contents["cityscapes_panoptic_val"].counts["car"] == 1
    assert contents["cityscapes_panoptic_val"].ignored == 1
    (record,) = DatasetCatalog.get("cityscapes_panoptic_val")
    assert record["image_id"] == "ulm_000001_000019"
    assert record["file_name"].endswith("leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png")
    expected = INSTANCES.astype(np.uint32)
    expected[(INSTANCES == 1) | (INSTANCES == 29)] = 0
    assert np.array_equal(read_segment_map(record["pan_seg_file_name"]), expected)
    assert [(s["id"], s["category_id"], s["iscrowd"]) for s in record["segments_info"]] == [
        (7, 0, 0),
        (23, 10, 0),
        (26, 13, 1),
        (26001, 13, 0),
    ]
    assert record["segments_info"][0]["bbox"] == [0, 0, 2, 3]


def test_the_official_panoptic_file_is_read(root: Path) -> None:
    """What createPanopticImgs.py of cityscapesScripts writes has the same names and fields."""
    prepare_dataset("cityscapes", root, any_count=True)
    data = json.loads((root / "cityscapes/gtFine/cityscapes_panoptic_val.json").read_text())
    assert data["images"] == [
        {
            "id": "ulm_000001_000019",
            "file_name": "ulm_000001_000019_gtFine_leftImg8bit.png",
            "width": 3,
            "height": 3,
        }
    ]
    (annotation,) = data["annotations"]
    assert annotation["file_name"] == "ulm_000001_000019_gtFine_panoptic.png"
    assert annotation["segments_info"][3] == {
        "id": 26001,
        "category_id": 26,
        "area": 2,
        "bbox": [1, 1, 1, 2],
        "iscrowd": 0,
    }
    assert len(data["categories"]) == 19
    assert data["categories"][0] == {"id": 7, "name": "road", "isthing": 0}


def test_half_extracted(root: Path) -> None:
    path = root / f"cityscapes/gtFine/val/ulm/{NAMES['val']}_gtFine_instanceIds.png"
    path.unlink()
    with pytest.raises(DatasetError, match=r"instanceIds\.png does not exist \(1 of 1 are missing"):
        prepare_dataset("cityscapes", root, any_count=True)
    made = [p.name for p in (root / "cityscapes").rglob("*") if "detectron2" in str(p)]
    assert made == [], "all sources are looked for before the first file is made"


def test_corrupt_map(root: Path) -> None:
    path = root / f"cityscapes/gtFine/val/ulm/{NAMES['val']}_gtFine_instanceIds.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ImageError, match=r"ulm_000001_000019_gtFine_instanceIds\.png"):
        prepare_dataset("cityscapes", root, any_count=True)
    assert not (root / "cityscapes/gtFine/cityscapes_panoptic_val").exists()
    assert not (root / "cityscapes/gtFine/cityscapes_panoptic_val.json").exists()


def test_labels_of_another_data_set(root: Path, save: Callable[..., Path]) -> None:
    stem = f"cityscapes/gtFine/train/aachen/{NAMES['train']}_gtFine"
    save(f"{stem}_instanceIds.png", np.full((3, 3), 40001, dtype=np.uint16))
    with pytest.raises(DatasetError, match="has the label 40001, which is no instance"):
        prepare_dataset("cityscapes", root, any_count=True)
    save(f"{stem}_labelIds.png", np.full((3, 3), 40, dtype=np.uint8))
    with pytest.raises(DatasetError, match="has the label 40, which none of the 19 classes has"):
        prepare_dataset("cityscapes", root, any_count=True, force=True)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    register_cityscapes(tmp_path)
    for name in ("cityscapes_semantic_val", "cityscapes_panoptic_val"):
        with pytest.raises(DatasetError, match=r"gtFine_trainvaltest\.zip"):
            DatasetCatalog.get(name)
