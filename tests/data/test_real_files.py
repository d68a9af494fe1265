"""Files that other projects wrote (tests/real): read right."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from panopticapi.evaluation import pq_compute_single_core
from PIL import Image

from densedet.data import load_panoptic_format, register_ade20k, register_panoptic_format
from densedet.data.images import read_label_map
from densedet.data.panoptic_mapper import PanopticMapper
from densedet.data.segment_map import read_segment_map, write_segment_map
from densedet.data.semantic_mapper import LabelReader
from densedet.data.verification import verify
from densedet.errors import DatasetError
from densedet.evaluation import OpenVocabularyPanopticEvaluator
from densedet.vocabulary import Vocabulary

REAL = Path(__file__).parent.parent / "real"
COCO = (REAL / "coco_panoptic/panoptic_examples.json", REAL / "coco_panoptic/pngs")
MAPILLARY = (REAL / "mapillary/panoptic/panoptic_2018.json", REAL / "mapillary/panoptic")
BOTH = pytest.mark.parametrize("files", [COCO, MAPILLARY], ids=["coco", "mapillary"])


@BOTH
def test_the_segments_are_those_of_the_png(files: tuple[Path, Path]) -> None:
    vocabulary = Vocabulary.from_coco(files[0])
    records = load_panoptic_format(files[0], "images", files[1], vocabulary)
    assert len(records) == 2
    for record in records:
        ids = read_segment_map(record["pan_seg_file_name"])
        assert ids.shape == (record["height"], record["width"])
        assert {s["id"] for s in record["segments_info"]} == set(np.unique(ids).tolist()) - {0}
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            tight = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert segment.get("bbox", tight) == tight
    with_box = ["bbox" in segment for segment in records[0]["segments_info"]]
    assert all(with_box) if files is COCO else not any(with_box)


def _moved(record: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, int]]]:
    """The truth some pixels lower: some segments still match, others do not."""
    ids = np.roll(read_segment_map(record["pan_seg_file_name"]), 4, axis=0).astype(np.int32)
    segments = [
        {"id": segment["id"], "category_id": segment["category_id"]}
        for segment in record["segments_info"]
        if (ids == segment["id"]).any()
    ]
    return ids, segments


@BOTH
def test_panoptic_quality_equals_the_reference(files: tuple[Path, Path], tmp_path: Path) -> None:
    data = json.loads(files[0].read_text())
    vocabulary = Vocabulary.from_coco(data)
    register_panoptic_format("real", files[0], tmp_path / "images", files[1], vocabulary)
    records = DatasetCatalog.get("real")
    evaluator = OpenVocabularyPanopticEvaluator("real")
    category_ids = sorted(category["id"] for category in data["categories"])
    pairs = []
    truth = {annotation["image_id"]: annotation for annotation in data["annotations"]}
    for record in records:
        ids, segments = _moved(record)
        evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(ids), segments)}])
        name = truth[record["image_id"]]["file_name"]
        write_segment_map(tmp_path / name, ids)
        listed = [{**s, "category_id": category_ids[s["category_id"]]} for s in segments]
        predicted = {"image_id": record["image_id"], "file_name": name, "segments_info": listed}
        pairs.append((truth[record["image_id"]], predicted))
    categories = {category["id"]: category for category in data["categories"]}
    stat = pq_compute_single_core(0, pairs, str(files[1]), str(tmp_path), categories)
    expected, by_category = stat.pq_average(categories, isthing=None)
    found = evaluator.evaluate()["panoptic_seg"]
    assert found["PQ"] == pytest.approx(100 * expected["pq"], abs=1e-9)
    assert {i for i, row in by_category.items() if row["pq"]} == {
        category["id"] for category in data["categories"] if found[f"PQ-{category['name']}"] > 0
    }
    assert (0 < found["PQ"] < 100) is (files is COCO)


def test_mapillary_trains_without_boxes(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_coco(MAPILLARY[0])
    records = load_panoptic_format(MAPILLARY[0], tmp_path, MAPILLARY[1], vocabulary)
    for record in records:
        Image.new("RGB", (5, 5)).save(record["file_name"])
        sample = PanopticMapper(True, [], vocabulary)(record)
        things = [s for s in record["segments_info"] if s["isthing"] and not s["iscrowd"]]
        assert len(sample["instances"]) == len(things)
    labels = read_label_map(REAL / "mapillary/labels/1.png")
    assert np.unique(labels).tolist() == [1, 2]
    instances = read_label_map(REAL / "mapillary/instances/1.png", bits=16)
    assert np.unique(instances).tolist() == [256, 512, 513]
    with pytest.raises(DatasetError, match="mode I;16; write it as an 8-bit grey PNG"):
        LabelReader(3)(REAL / "mapillary/instances/1.png")


def test_ade20k_labels(tmp_path: Path) -> None:
    """The official labels; copied instead of converted they are refused, converted they are not."""
    folder = tmp_path / "ADEChallengeData2016"
    folders = ("images", "annotations", "annotations_detectron2")
    images, official, ours = (folder / name / "validation" for name in folders)
    for path in (images, ours):
        path.mkdir(parents=True)
    shutil.copytree(REAL / "ade20k", official, ignore=shutil.ignore_patterns("LICENSE*"))
    count = np.zeros(151, dtype=np.int64)
    for path in official.iterdir():
        labels = read_label_map(path)
        count += np.bincount(labels.ravel(), minlength=151)
        Image.new("RGB", labels.shape[::-1]).save(images / f"{path.stem}.jpg")
        shutil.copy(path, ours)
    register_ade20k(tmp_path)
    with pytest.raises(DatasetError, match="ADE_val_0000000.*was not prepared from"):
        DatasetCatalog.get("ade20k_150_val")
    for path in official.iterdir():
        Image.fromarray(read_label_map(path) - np.uint8(1)).save(ours / path.name)
    contents = verify("ade20k_150_val")
    assert list(contents.counts.values()) == count[1:].tolist()
    assert (contents.images, contents.ignored) == (3, count[0])
