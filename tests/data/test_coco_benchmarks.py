"""COCO panoptic and COCO-Stuff 164k on small files of the official layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from PIL import Image

from densedet.data.prepare import prepare_dataset
from densedet.data.segment_map import write_segment_map
from densedet.errors import DatasetError, ImageError


@pytest.fixture
def panoptic(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """One image a split: a person (id 1) and a rug (id 200)."""
    categories = [{k: c[k] for k in ("id", "name", "isthing")} for c in COCO_CATEGORIES]
    ids = np.array([[0, 5, 5], [70000, 5, 5], [70000] * 3, [70000] * 3])
    for part in ("train", "val"):
        save(f"coco/{part}2017/1.jpg")
        (tmp_path / f"coco/panoptic_{part}2017").mkdir()
        write_segment_map(tmp_path / f"coco/panoptic_{part}2017/1.png", ids)
        segments = [
            {"id": 5, "category_id": 1, "bbox": [1, 0, 2, 2], "area": 4, "iscrowd": 0},
            {"id": 70000, "category_id": 200, "bbox": [0, 1, 3, 3], "area": 7, "iscrowd": 0},
        ]
        image = {"id": 1, "file_name": "1.jpg", "height": 4, "width": 3}
        annotation = {"image_id": 1, "file_name": "1.png", "segments_info": segments}
        content = {"images": [image], "annotations": [annotation], "categories": categories}
        _write(tmp_path, part, content)
    return tmp_path


def _file(root: Path, part: str) -> Path:
    return root / f"coco/annotations/panoptic_{part}2017.json"


def _write(root: Path, part: str, content: dict[str, Any]) -> None:
    _file(root, part).parent.mkdir(exist_ok=True)
    _file(root, part).write_text(json.dumps(content))


def test_coco_panoptic(panoptic: Path) -> None:
    contents = prepare_dataset("coco_panoptic", panoptic, any_count=True)
    for part in ("train", "val"):
        found = contents[f"coco_panoptic_{part}"]
        assert (found.images, found.unit) == (1, "segments")
        assert {k: n for k, n in found.counts.items() if n} == {"person": 1, "rug-merged": 1}
    (record,) = DatasetCatalog.get("coco_panoptic_train")
    assert [s["category_id"] for s in record["segments_info"]] == [0, 132]


def test_wrong_ids_are_named(panoptic: Path) -> None:
    content = json.loads(_file(panoptic, "val").read_text())
    content["annotations"][0]["segments_info"][1]["id"] = 70001
    _write(panoptic, "val", content)
    message = r"panoptic_val2017/1\.png has the segment id 70000, which the annotation of image 1"
    with pytest.raises(DatasetError, match=message):
        prepare_dataset("coco_panoptic", panoptic, any_count=True)
    content["annotations"][0]["segments_info"][1]["category_id"] = 12
    _write(panoptic, "val", content)
    with pytest.raises(DatasetError, match=r"panoptic_val2017\.json: segment 70001 .* 12, which"):
        prepare_dataset("coco_panoptic", panoptic, any_count=True)
    assert not (panoptic / ".densedet").exists()


def test_segments_without_pixels_and_of_another_area(panoptic: Path) -> None:
    path = panoptic / "coco/panoptic_val2017/1.png"
    whole = path.read_bytes()
    write_segment_map(path, np.zeros((4, 3), dtype=np.int64))
    message = (
        r"panoptic_val2017/1\.png has 0 pixels of segment 5, but the annotation of image 1 says"
    )
    with pytest.raises(DatasetError, match=f"{message} 4; unpack or prepare both again"):
        prepare_dataset("coco_panoptic", panoptic, any_count=True)
    path.write_bytes(whole)
    content = json.loads(_file(panoptic, "val").read_text())
    content["annotations"][0]["segments_info"][0]["area"] = 4000
    _write(panoptic, "val", content)
    with pytest.raises(DatasetError, match=r"has 4 pixels of segment 5, but .* image 1 says 4000;"):
        prepare_dataset("coco_panoptic", panoptic, any_count=True)


def test_map_of_another_size_and_a_corrupt_one(panoptic: Path) -> None:
    path = panoptic / "coco/panoptic_val2017/1.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ImageError, match=r"panoptic_val2017/1\.png is truncated or corrupt"):
        prepare_dataset("coco_panoptic", panoptic, any_count=True)
    write_segment_map(path, np.zeros((3, 4), dtype=np.int64))
    with pytest.raises(
        DatasetError, match=r"1\.png has another size than the annotation says, 3x4"
    ):
        prepare_dataset("coco_panoptic", panoptic, any_count=True)


def test_coco_stuff_164k(tmp_path: Path, save: Callable[..., Path]) -> None:
    # person, toothbrush (id 90), banner (id 92), wood (id 182), none
    labels = np.array([[0, 89, 91], [181, 255, 0], [0, 0, 0], [91, 91, 91]], dtype=np.uint8)
    for part in ("train2017", "val2017"):
        save(f"coco/{part}/7.jpg")
        save(f"coco/stuffthingmaps/{part}/7.png", labels)
    contents = prepare_dataset("coco_stuff_164k", tmp_path, any_count=True)
    counts = {k: n for k, n in contents["coco_stuff_164k_val"].counts.items() if n}
    assert counts == {"person": 5, "toothbrush": 1, "banner": 4, "wood": 1}
    (record,) = DatasetCatalog.get("coco_stuff_164k_val")
    expected = [[0, 79, 80], [170, 255, 0], [0, 0, 0], [80, 80, 80]]
    assert np.asarray(Image.open(record["sem_seg_file_name"])).tolist() == expected
    assert len(MetadataCatalog.get("coco_stuff_164k_val").vocabulary) == 171


def test_coco_stuff_164k_has_no_label_for_an_id_without_class(
    tmp_path: Path, save: Callable[..., Path]
) -> None:
    for part in ("train2017", "val2017"):
        save(f"coco/{part}/7.jpg")
        save(f"coco/stuffthingmaps/{part}/7.png", np.full((4, 3), 11, dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"7\.png has the label 11, which none of the 171"):
        prepare_dataset("coco_stuff_164k", tmp_path, any_count=True)
