"""Detectron2's LVISEvaluator on data sets registered by densedet."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog
from detectron2.evaluation import LVISEvaluator

from densedet import compat
from densedet.data import register_coco_format
from densedet.vocabulary import Category, Vocabulary

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def _run(evaluator: LVISEvaluator, pairs: list[tuple[dict, dict]]) -> dict[str, Any]:
    compat.apply()
    evaluator.reset()
    for inputs, outputs in pairs:
        evaluator.process([inputs], [outputs])
    return evaluator.evaluate()


def _vocabulary(data: dict[str, Any]) -> Vocabulary:
    """The classes in the order of their ids, the rare ones unseen."""
    entries = sorted(data["categories"], key=lambda entry: entry["id"])
    return Vocabulary(
        tuple(
            Category(e["name"], seen=e["frequency"] != "r", frequency=e["frequency"])
            for e in entries
        )
    )


def _tiny() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Three classes r, c, f; the rare one is found, the common one missed, the frequent one is too.

    A false "f" on the second image does not count: it is not among that image's negatives.
    """
    image = {"width": 80, "height": 60, "not_exhaustive_category_ids": []}
    images = [
        {**image, "id": i, "coco_url": f"http://x.org/val2017/{i}.jpg", "neg_category_ids": []}
        for i in (1, 2)
    ]
    boxes = {1: [5, 5, 20, 20], 2: [30, 5, 20, 20], 3: [5, 30, 40, 20]}
    data = {
        "images": images,
        "categories": [
            {"id": i, "name": f"thing {f}", "frequency": f} for i, f in enumerate("rcf", 1)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": 1,
                "category_id": i,
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": [
                    [box[0], box[1], box[0] + box[2], box[1], box[0] + box[2], box[1] + box[3]]
                ],
            }
            for i, box in boxes.items()
        ],
    }
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": boxes[1], "score": 0.6},
        {"image_id": 1, "category_id": 3, "bbox": boxes[3], "score": 0.5},
        {"image_id": 2, "category_id": 3, "bbox": boxes[3], "score": 0.9},
    ]
    return data, detections


@pytest.mark.parametrize("order", ["rcf", "fcr"])
def test_rare_common_frequent(
    order: str,
    outputs: Callable[..., Any],
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    data, detections = _tiny()
    vocabulary = Vocabulary.from_names([f"thing {f}" for f in order])
    path = write_json(data)
    register_coco_format("tiny_lvis", path, tmp_path, vocabulary, evaluator_type="lvis")
    records = DatasetCatalog.get("tiny_lvis")
    assert [a["category_id"] for a in records[0]["annotations"]] == [order.index(f) for f in "rcf"]
    evaluator = LVISEvaluator("tiny_lvis", distributed=False, max_dets_per_image=300)
    found = _run(evaluator, outputs(data, detections, vocabulary.labels, masks=False))["bbox"]
    assert found["APr"] == found["APf"] == pytest.approx(100, abs=1e-6)
    assert found["APc"] == 0
    assert found["AP"] == pytest.approx(200 / 3, abs=1e-6)


def test_no_detections(
    outputs: Callable[..., Any], write_json: Callable[[Any], Path], tmp_path: Path
) -> None:
    data, _ = _tiny()
    vocabulary = _vocabulary(data)
    register_coco_format("tiny_lvis", write_json(data), tmp_path, vocabulary, evaluator_type="lvis")
    evaluator = LVISEvaluator("tiny_lvis", distributed=False)
    found = _run(evaluator, outputs(data, [], vocabulary.labels, masks=False))["bbox"]
    assert all(math.isnan(found[name]) for name in FIGURES), "Detectron2's way of saying it"


@pytest.mark.golden
def test_golden(golden_dir: Path, tmp_path: Path, outputs: Callable[..., Any]) -> None:
    gt, dt, expected = (
        json.loads((golden_dir / f"ov_lvis_{part}.json").read_text())
        for part in ("gt", "dt", "expected")
    )
    vocabulary = _vocabulary(gt)
    json_file = golden_dir / "ov_lvis_gt.json"
    register_coco_format("golden_lvis", json_file, tmp_path, vocabulary, evaluator_type="lvis")
    assert len(DatasetCatalog.get("golden_lvis")) == len(gt["images"])
    evaluator = LVISEvaluator("golden_lvis", distributed=False, max_dets_per_image=300)
    results = _run(evaluator, outputs(gt, dt, vocabulary.labels, masks=True))
    for task, wanted in expected["expected"].items():
        for name in FIGURES:
            assert results[task][name] == pytest.approx(wanted[name], abs=1e-3), (task, name)
