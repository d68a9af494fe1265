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
from densedet.data.verification import verify
from densedet.errors import DatasetError, ImageError

# road, sky, the ego vehicle (not evaluated), a car, a group of cars, a caravan (not evaluated)
INSTANCES = np.array([[7, 7, 23], [1, 26001, 26], [7, 26001, 29]], dtype=np.uint16)
OFFICIAL = {
    "images": [
        {
            "id": "ulm_000001_000019",
            "width": 3,
            "height": 3,
            "file_name": "ulm_000001_000019_gtFine_leftImg8bit.png",
        }
    ],
    "annotations": [
        {
            "image_id": "ulm_000001_000019",
            "file_name": "ulm_000001_000019_gtFine_panoptic.png",
            "segments_info": [
                {"id": 7, "category_id": 7, "area": 3, "bbox": [0, 0, 2, 3], "iscrowd": 0},
                {"id": 23, "category_id": 23, "area": 1, "bbox": [2, 0, 1, 1], "iscrowd": 0},
                {"id": 26, "category_id": 26, "area": 1, "bbox": [2, 1, 1, 1], "iscrowd": 1},
                {"id": 26001, "category_id": 26, "area": 2, "bbox": [1, 1, 1, 2], "iscrowd": 0},
            ],
        }
    ],
    "categories": [
        {"id": i, "name": name, "color": [1, 2, 3], "supercategory": group, "isthing": thing}
        for i, name, group, thing in (
            (7, "road", "flat", 0),
            (8, "sidewalk", "flat", 0),
            (11, "building", "construction", 0),
            (12, "wall", "construction", 0),
            (13, "fence", "construction", 0),
            (17, "pole", "object", 0),
            (19, "traffic light", "object", 0),
            (20, "traffic sign", "object", 0),
            (21, "vegetation", "nature", 0),
            (22, "terrain", "nature", 0),
            (23, "sky", "sky", 0),
            (24, "person", "human", 1),
            (25, "rider", "human", 1),
            (26, "car", "vehicle", 1),
            (27, "truck", "vehicle", 1),
            (28, "bus", "vehicle", 1),
            (31, "train", "vehicle", 1),
            (32, "motorcycle", "vehicle", 1),
            (33, "bicycle", "vehicle", 1),
        )
    ],
}
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


def test_panoptic_files_are_as_the_official_ones(root: Path) -> None:
    """What createPanopticImgs.py of cityscapesScripts writes has the same names and fields."""
    prepare_dataset("cityscapes", root, any_count=True)
    data = json.loads((root / "cityscapes/gtFine/cityscapes_panoptic_val.json").read_text())
    assert data["images"] == OFFICIAL["images"]
    assert data["annotations"] == OFFICIAL["annotations"]
    assert len(data["categories"]) == 19
    assert data["categories"][0] == {"id": 7, "name": "road", "isthing": 0}


def test_the_official_panoptic_file_is_read(root: Path) -> None:
    register_cityscapes(root)
    folder = root / "cityscapes/gtFine/cityscapes_panoptic_val"
    folder.mkdir()
    folder.with_suffix(".json").write_text(json.dumps(OFFICIAL))
    ids = np.where((INSTANCES == 1) | (INSTANCES == 29), 0, INSTANCES.astype(np.int64))
    colours = np.stack([ids % 256, ids // 256, ids // 256**2], axis=-1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "ulm_000001_000019_gtFine_panoptic.png")
    contents = verify("cityscapes_panoptic_val")
    found = {label: n for label, n in contents.counts.items() if n}
    assert (found, contents.ignored) == ({"road": 1, "sky": 1, "car": 1}, 1)
    (record,) = DatasetCatalog.get("cityscapes_panoptic_val")
    assert record["image_id"] == "ulm_000001_000019"
    assert record["file_name"].endswith("leftImg8bit/val/ulm/ulm_000001_000019_leftImg8bit.png")
    assert record["pan_seg_file_name"] == str(folder / "ulm_000001_000019_gtFine_panoptic.png")
    assert [s["category_id"] for s in record["segments_info"]] == [0, 10, 13, 13]


@pytest.mark.parametrize("ignored", [0, 255])
def test_train_ids_are_refused(root: Path, save: Callable[..., Path], ignored: int) -> None:
    labels = np.array([[0, 0, 10], [ignored, 13, 13], [18, 13, ignored]], dtype=np.uint8)
    save(f"cityscapes/gtFine/val/ulm/{NAMES['val']}_gtFine_labelIds.png", labels)
    with pytest.raises(DatasetError, match=r"labelIds\.png .* \(are the labels trainIds\?\)"):
        prepare_dataset("cityscapes", root, any_count=True)
    assert not (root / "cityscapes/annotations_detectron2/val").exists()


def test_maps_that_contradict_each_other(root: Path, save: Callable[..., Path]) -> None:
    instances = INSTANCES.copy()
    instances[0, 0] = 8
    save(f"cityscapes/gtFine/val/ulm/{NAMES['val']}_gtFine_instanceIds.png", instances)
    message = r"_gtFine_labelIds\.png and instance map .*_gtFine_instanceIds\.png contradict each"
    with pytest.raises(DatasetError, match=message):
        prepare_dataset("cityscapes", root, any_count=True)
    assert not (root / "cityscapes/annotations_detectron2/val").exists()


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
    for name in ("semantic", "panoptic"):
        save(f"{stem}_instanceIds.png", np.full((3, 3), 40001, dtype=np.uint16))
        save(f"{stem}_labelIds.png", np.full((3, 3), 40, dtype=np.uint8))
        message = {
            "semantic": "has the label 40, which none of the 19 classes has",
            "panoptic": "has the label 40001, which is no instance",
        }[name]
        with pytest.raises(DatasetError, match=message):
            prepare_dataset("cityscapes", root, any_count=True)
        save(f"cityscapes/annotations_detectron2/train/aachen/{NAMES['train']}.png")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    register_cityscapes(tmp_path)
    for name in ("cityscapes_semantic_val", "cityscapes_panoptic_val"):
        with pytest.raises(DatasetError, match=r"gtFine_trainvaltest\.zip"):
            DatasetCatalog.get(name)
