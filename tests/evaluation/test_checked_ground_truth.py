"""Evaluators take their ground truth from checked annotations, and it is that of the raw file."""

import contextlib
import io
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import coco_evaluation
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densedet.data import annotation_file, register_coco_format, table_cache
from densedet.errors import DatasetError
from densedet.evaluation import OpenVocabularyCOCOEvaluator, OpenVocabularyLVISEvaluator
from densedet.evaluation.ground_truth import checked_ground_truth, restrict_ground_truth
from densedet.vocabulary import Category, Vocabulary

MakeCoco = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


def _official(make_coco: MakeCoco, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """With all that training leaves out or changes, and the published evaluation counts."""
    data, detections = make_coco(seed, images=16)
    rng = np.random.default_rng(seed)
    data["categories"].append({"id": 99, "name": "unlisted"})
    for number, annotation in enumerate(data["annotations"]):
        annotation["area"] *= 0.9  # areas are those of the file
        x, y, width, height = annotation["bbox"]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        if number % 5 == 1:
            annotation["bbox"] = [x, y, width, 0.0]
        elif number % 5 == 2:
            annotation["bbox"] = [x - 0.7 if x < 1 else x, y, 160.6 - x, height]
        elif number % 5 == 3 and not annotation["iscrowd"]:
            annotation["segmentation"] = [corners, [x, y, x + 3.5, y + 9.25]]
        if rng.random() < 0.1:
            annotation["category_id"] = 99
    return data, detections


def _pycocotools(path: Path, detections: list[dict[str, Any]], task: str, ids: list[int]) -> Any:
    drop = {"bbox"} if task == "segm" else set()
    results = [{k: v for k, v in d.items() if k not in drop} for d in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        evaluation.params.catIds = ids
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_pycocotools_on_the_raw_file(
    seed: int,
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    vocabulary: Vocabulary,
    write_json: Callable[[Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", COCOeval)
    data, detections = _official(make_coco, seed)
    path = write_json(data)
    register_coco_format("official", path, tmp_path, vocabulary, drop_unlisted=True)
    trained = sum(len(record["annotations"]) for record in DatasetCatalog.get("official"))
    listed = [a for a in data["annotations"] if a["category_id"] != 99]
    assert trained < len(listed) < len(data["annotations"]), "training leaves some out"
    evaluator = OpenVocabularyCOCOEvaluator("official", ("bbox", "segm"), distributed=False)
    evaluator.reset()
    pairs = outputs(data, detections, vocabulary.labels, masks=True)
    for sample, output in pairs:
        evaluator.process([sample], [output])
    found = evaluator.evaluate()
    # what the evaluator was given, in COCO's form: boxes are fp32 there
    converted = [
        {**d, "category_id": evaluator._category_ids[d["category_id"]]}
        for sample, output in pairs
        for d in coco_evaluation.instances_to_coco_json(output["instances"], sample["image_id"])
    ]
    ids = sorted(c["id"] for c in data["categories"] if c["id"] != 99)
    for task in ("bbox", "segm"):
        expected = _pycocotools(path, converted, task, ids)
        for k, name in enumerate(("AP", "AP50", "AP75", "APs", "APm", "APl")):
            value = expected.stats[k]
            wanted = 100 * value if value >= 0 else math.nan
            assert found[task][name] == pytest.approx(wanted, rel=0, abs=1e-12, nan_ok=True), name
        names = {c["id"]: c["name"] for c in data["categories"]}
        for k, number in enumerate(ids):
            precision = expected.eval["precision"][:, :, k, 0, -1]
            wanted = 100 * precision[precision > -1].mean() if (precision > -1).any() else math.nan
            value = found[task][f"AP-{names[number]}"]
            assert value == pytest.approx(wanted, rel=0, abs=1e-12, nan_ok=True)


def test_categories_with_text_for_ids(
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    vocabulary: Vocabulary,
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    """Also where a category of the vocabulary is not in the file, and in LVIS's lists."""
    data, detections = make_coco(0, images=4)
    pairs = outputs(data, detections, vocabulary.labels, masks=True)
    results = []
    for name, prefix in (("plain", None), ("text", "c"), ("digits", "")):
        changed = json.loads(json.dumps(data))
        if prefix is not None:
            for entry in changed["categories"]:
                entry["id"] = f"{prefix}{entry['id']}"
            for entry in changed["annotations"]:
                entry["category_id"] = f"{prefix}{entry['category_id']}"
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(changed))
        register_coco_format(name, path, tmp_path, vocabulary, drop_unlisted=True)
        evaluator = OpenVocabularyCOCOEvaluator(name, ("bbox", "segm"), distributed=False)
        evaluator.reset()
        for sample, output in pairs:
            evaluator.process([sample], [output])
        found = evaluator.evaluate()
        results.append({task: sorted(figures.items()) for task, figures in found.items()})
        assert found["bbox"]["AP"] > 0
    for other in results[1:]:  # sums of classes in another order
        assert other.keys() == results[0].keys()
        for task, figures in results[0].items():
            assert dict(other[task]) == pytest.approx(dict(figures), abs=1e-9, nan_ok=True)


def test_the_file_is_decoded_once(
    make_coco: MakeCoco,
    vocabulary: Vocabulary,
    write_json: Callable[[Any], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, _ = make_coco(0)
    path = write_json(data)
    reads: list[bytes] = []
    decode = annotation_file._decode
    monkeypatch.setattr(annotation_file, "_decode", lambda c: reads.append(c) or decode(c))
    monkeypatch.setattr("pycocotools.coco.json.load", _forbidden)
    for name, options in (("train", {"seen_only": True}), ("val", {})):
        register_coco_format(name, path, tmp_path, vocabulary, **options)
        DatasetCatalog.get(name)
    OpenVocabularyCOCOEvaluator("val", distributed=False)
    assert len(reads) == 1
    data["annotations"].pop()
    path.write_text(json.dumps(data))
    assert len(checked_ground_truth("val")["annotations"]) == len(data["annotations"])
    assert len(reads) == 2, "the file has changed"
    assert not [name for name in MetadataCatalog.list() if "densedet_" in name]


def _forbidden(file: Any) -> Any:
    if "empty" not in getattr(file, "name", ""):
        raise AssertionError(f"{file} is opened again")
    return json.loads(file.read())


DAMAGED: dict[str, Any] = {
    "box": ({"bbox": [1, 2, "x", 4]}, "four numbers"),
    "category": ({"category_id": 1234}, "'categories' lacks"),
    "unlisted": ({"category_id": 12}, "not in the vocabulary"),
    "run lengths": ({"segmentation": {"size": [120, 160], "counts": [1200, 40]}}, "add up to"),
    "outside": ({"bbox": [150, 2, 40, 4]}, "30 px outside .* box_tolerance"),
    "id": ({"id": 2}, "occurs twice"),
}


@pytest.mark.parametrize("kind", ["coco", "lvis"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_gives_no_evaluator(
    case: str,
    kind: str,
    make_coco: MakeCoco,
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    """``--eval-only`` ends in one line, before anything is evaluated."""
    data, _ = make_coco(0)
    for image in data["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    change, message = DAMAGED[case]
    data["annotations"][2].update(category_id=3)
    data["annotations"][2].update(change)
    names = (
        ("dog", "cup", "cat", "ball")
        if case == "unlisted"
        else ("dog", "cup", "cat", "ball", "kite")
    )
    vocabulary = Vocabulary(tuple(map(Category, names)))
    register_coco_format("damaged", write_json(data), tmp_path, vocabulary, evaluator_type=kind)
    evaluator = OpenVocabularyCOCOEvaluator if kind == "coco" else OpenVocabularyLVISEvaluator
    with pytest.raises(DatasetError, match=rf"instances\.json.*{message}"):
        evaluator("damaged")


def test_boxes_alone_are_evaluated_where_no_mask_is(
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    vocabulary: Vocabulary,
    write_json: Callable[[Any], Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, detections = make_coco(1)
    for entry in data["categories"]:
        entry["frequency"] = "f"
    for image in data["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    for number, annotation in enumerate(data["annotations"]):
        annotation.update(segmentation=[[]], area=(None, "text", -1)[number % 3])
        annotation["bbox"] = list(map(str, annotation["bbox"]))
    register_coco_format("boxes", write_json(data), tmp_path, vocabulary)
    areas = [
        a["area"]
        for a in restrict_ground_truth(checked_ground_truth("boxes"), vocabulary.labels)[0][
            "annotations"
        ]
    ]
    boxes = [list(map(float, a["bbox"])) for a in data["annotations"]]
    assert areas == [box[2] * box[3] for box in boxes]
    pairs = outputs(data, detections, vocabulary.labels, masks=True)
    for kind in (OpenVocabularyCOCOEvaluator, OpenVocabularyLVISEvaluator):
        with pytest.raises(DatasetError, match=r"of data set 'boxes' .* have no segmentation"):
            kind("boxes", ("segm",))
        evaluator = kind("boxes", distributed=False)
        evaluator.reset()
        for sample, output in pairs:
            evaluator.process([sample], [output])
        with caplog.at_level(logging.WARNING, "densedet"):
            results = evaluator.evaluate()
        assert list(results) == ["bbox"] and results["bbox"]["AP50"] > 0
    assert caplog.text.count("has no masks: only boxes are evaluated") == 2
    data["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 9, 9]]
    register_coco_format("some", write_json(data), tmp_path, vocabulary)
    evaluator = OpenVocabularyCOCOEvaluator("some", distributed=False)
    evaluator.reset()
    evaluator.process([pairs[0][0]], [pairs[0][1]])
    with pytest.raises(DatasetError, match="have no segmentation, the first is in image 100"):
        evaluator.evaluate()


def test_tables_are_kept_for_few_files() -> None:
    assert table_cache._table.cache_parameters()["maxsize"] == 4
