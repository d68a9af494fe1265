"""ADE20K-150 semantic and panoptic on small files of the official layout."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from densedet.data.prepare import prepare_dataset
from densedet.data.segment_map import read_segment_map
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

ADE = "ADEChallengeData2016"
# wall is 1, bed 8 (the first thing), sky 3, person 13; 0 is not labelled
SEMANTIC = np.array([[1, 1, 1], [8, 8, 13], [8, 8, 13], [0, 3, 3]], dtype=np.uint8)
# bed is class 1 of the instances, person class 4; the second bed reaches over the wall
CLASSES = np.array([[0, 0, 1], [1, 1, 0], [1, 1, 4], [0, 0, 0]], dtype=np.uint8)
NUMBERS = np.array([[0, 0, 2], [1, 1, 0], [1, 1, 3], [0, 0, 0]], dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path, save: Callable[..., Path]) -> Path:
    instances = np.stack([CLASSES, NUMBERS, np.zeros_like(CLASSES)], axis=-1)
    for part, name in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        save(f"{ADE}/images/{part}/{name}.jpg")
        save(f"{ADE}/annotations/{part}/{name}.png", SEMANTIC)
        save(f"{ADE}/annotations_instance/{part}/{name}.png", instances)
    return tmp_path


def test_semantic(root: Path) -> None:
    contents = prepare_dataset("ade20k_150", root, any_count=True)
    assert contents["ade20k_150_val"].counts["wall"] == 3
    assert contents["ade20k_150_val"].ignored == 1
    (record,) = DatasetCatalog.get("ade20k_150_val")
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    assert np.array_equal(labels, SEMANTIC - np.uint8(1))


def test_panoptic(root: Path) -> None:
    prepare_dataset("ade20k_panoptic", root, any_count=True)
    vocabulary = MetadataCatalog.get("ade20k_panoptic_val").vocabulary
    assert vocabulary == Vocabulary.named("ade20k_panoptic")
    (record,) = DatasetCatalog.get("ade20k_panoptic_val")
    assert record["file_name"] == str(root / ADE / "images/validation/ADE_val_1.jpg")
    ids = read_segment_map(record["pan_seg_file_name"])
    assert ids.tolist() == [[1, 1, 4], [3, 3, 0], [3, 3, 5], [0, 2, 2]]
    found = [(vocabulary.labels[s["category_id"]], s["bbox"]) for s in record["segments_info"]]
    assert found == [
        ("wall", [0, 0, 3, 1]),
        ("sky", [1, 3, 2, 1]),
        ("bed", [0, 1, 2, 2]),
        ("bed", [2, 0, 1, 1]),
        ("person", [2, 2, 1, 1]),
    ]


def test_stuff_under_things_keeps_its_area(root: Path, save: Callable[..., Path]) -> None:
    """MaskFormer's preparation counts it, and the verification knows; things are exact."""
    name = f"{ADE}/annotations_instance/validation/ADE_val_1.png"
    instances = np.zeros((4, 3, 3), dtype=np.uint8)
    instances[0] = instances[3, 1:] = (1, 1, 0)  # a bed over all of the wall and of the sky
    save(name, instances)
    contents = prepare_dataset("ade20k_panoptic", root, any_count=True)
    counts = contents["ade20k_panoptic_val"].counts
    assert {label: n for label, n in counts.items() if n} == {"wall": 1, "sky": 1, "bed": 1}
    path = root / ADE / "ade20k_panoptic_val.json"
    content = json.loads(path.read_text())
    segments = content["annotations"][0]["segments_info"]
    assert [segment["area"] for segment in segments] == [3, 2, 5]
    for i, area, message in ((2, 6, "5 pixels of segment 3,.* 6"), (0, 0, "0 pixels of segment 1")):
        segments[i]["area"] = area
        path.write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=message):
            prepare_dataset("ade20k_panoptic", root, any_count=True)
        segments[i]["area"] = 5


def test_a_half_extracted_instance_folder_is_found_first(root: Path) -> None:
    (root / ADE / "annotations_instance/validation/ADE_val_1.png").unlink()
    message = (
        r"annotations_instance/validation/ADE_val_1\.png does not exist \(1 of 1 are missing\)"
    )
    with pytest.raises(DatasetError, match=f"{message}; ADE20K"):
        prepare_dataset("ade20k_panoptic", root, any_count=True)
    assert not (root / ADE / "ade20k_panoptic_train").exists()


def test_instances_that_do_not_fit(root: Path, save: Callable[..., Path]) -> None:
    name = f"{ADE}/annotations_instance/validation/ADE_val_1.png"
    for wrong, message in (
        (np.stack([NUMBERS, CLASSES, CLASSES], axis=-1), r"instance 1 has the classes \[1, 2\]"),
        (np.full((4, 3, 3), 101, dtype=np.uint8), r"instance 101 has the classes \[101\] instead"),
        (np.zeros((4, 4, 3), dtype=np.uint8), "has another size than"),
    ):
        save(name, wrong)
        with pytest.raises(DatasetError, match=rf"ADE_val_1\.png.*{message}"):
            prepare_dataset("ade20k_panoptic", root, any_count=True)
        assert not (root / ADE / "ade20k_panoptic_val").exists()
