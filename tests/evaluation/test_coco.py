"""Open-vocabulary COCO metrics against pycocotools, and through Detectron2's evaluator."""

import contextlib
import copy
import io
import json
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

import densedet.evaluation
from densedet import compat
from densedet.data import register_coco_format
from densedet.errors import DatasetError
from densedet.evaluation import OpenVocabularyCOCOEvaluator, evaluate_coco_detections
from densedet.vocabulary import Category, Vocabulary

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl")
MakeCoco = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """What Detectron2 uses without and with ``compat.apply``."""
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", COCOeval)
    if request.param == "faster-coco-eval":
        compat.apply()
        assert coco_evaluation.COCOeval_opt is not COCOeval
    return coco_evaluation.COCOeval_opt


def _pycocotools(
    data: dict[str, Any], detections: list[dict[str, Any]], iou_type: str
) -> tuple[np.ndarray, dict[str, tuple[float, float]]]:
    """The oracle: its 12 figures, and (AP, AP50) of each class by evaluating that class alone."""
    results = copy.deepcopy(detections)
    if iou_type == "segm":
        for result in results:
            del result["bbox"]
    per_class = {}
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {"info": {}, **copy.deepcopy(data)}
        gt.createIndex()
        found = gt.loadRes(results)
        whole = COCOeval(gt, found, iou_type)
        whole.evaluate(), whole.accumulate(), whole.summarize()
        for entry in data["categories"]:
            one = COCOeval(gt, found, iou_type)
            one.params.catIds = [entry["id"]]
            one.evaluate(), one.accumulate(), one.summarize()
            per_class[entry["name"]] = (one.stats[0], one.stats[1])
    return whole.stats, per_class


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_pycocotools(
    iou_type: str, seed: int, implementation: type, make_coco: MakeCoco
) -> None:
    data, detections = make_coco(seed)
    stats, per_class = _pycocotools(data, detections, iou_type)
    before = copy.deepcopy((data, detections))
    found = evaluate_coco_detections(data, detections, iou_type, {"cat", "ball", "cup"})
    assert (data, detections) == before, "the arguments are not modified"
    for name, value in zip(SUMMARY, stats, strict=False):
        expected = 100 * value if value >= 0 else math.nan
        assert found[name] == pytest.approx(expected, abs=1e-9, nan_ok=True), name
    for i, key in enumerate(("AP", "AP50")):
        for name, values in per_class.items():
            expected = 100 * values[i] if values[i] >= 0 else math.nan
            assert found[f"{key}_per_class"][name] == pytest.approx(expected, nan_ok=True), name
    assert math.isnan(found["AP_per_class"]["cup"]), "only crowds"
    assert found["AP_per_class"]["ball"] == 0, "never detected"
    for i, key in enumerate(("AP", "AP50")):
        cat, ball, dog, kite = (100 * per_class[name][i] for name in ("cat", "ball", "dog", "kite"))
        assert found[f"{key}-seen"] == pytest.approx((cat + ball) / 2)
        assert found[f"{key}-unseen"] == pytest.approx((dog + kite) / 2)
        assert found[f"{key}-all"] == pytest.approx((cat + ball + dog + kite) / 4)
    assert 0 < found["AP-seen"] < found["AP50-seen"] < 100


def test_limit_of_detections(implementation: type, make_coco: MakeCoco) -> None:
    data, detections = make_coco(4)
    for number, detection in enumerate(detections):
        detection["score"] = 1 / (number + 2)
    best: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for detection in sorted(detections, key=lambda d: -d["score"]):
        best.setdefault((detection["image_id"], detection["category_id"]), []).append(detection)
    kept = [detection for group in best.values() for detection in group[:1]]
    assert len(kept) < len(detections)
    limited = evaluate_coco_detections(data, detections, "bbox", set(), max_dets=1)
    expected = evaluate_coco_detections(data, kept, "bbox", set())
    assert limited["AP50-all"] == pytest.approx(expected["AP50-all"])
    everything = evaluate_coco_detections(data, detections, "bbox", set())
    assert limited["AP50-all"] != pytest.approx(everything["AP50-all"])


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections(iou_type: str, implementation: type, make_coco: MakeCoco) -> None:
    data, _ = make_coco(0)
    found = evaluate_coco_detections(data, [], iou_type, {"cat", "cup"})
    assert found["AP50-seen"] == found["AP50-unseen"] == found["AP"] == 0
    assert found["AP_per_class"]["cat"] == 0 and math.isnan(found["AP_per_class"]["cup"])


def test_annotation_id_zero_counts(make_coco: MakeCoco) -> None:
    """pycocotools itself takes a match with annotation 0 for none."""
    data, _ = make_coco(0, images=1)
    data["annotations"] = [{**data["annotations"][0], "id": 0, "iscrowd": 0, "category_id": 3}]
    box = data["annotations"][0]["bbox"]
    detection = {"image_id": 100, "category_id": 3, "bbox": box, "score": 0.5}
    found = evaluate_coco_detections(data, [detection], "bbox", {"cat"})
    assert found["AP50-seen"] == pytest.approx(100)


def test_wrong_arguments(make_coco: MakeCoco) -> None:
    data, detections = make_coco(0)
    with pytest.raises(ValueError, match="'box'"):
        evaluate_coco_detections(data, detections, "box", set())
    detections[0]["image_id"] = 5
    with pytest.raises(DatasetError, match="image 5; evaluate"):
        evaluate_coco_detections(data, detections, "bbox", set())


def _run(evaluator: OpenVocabularyCOCOEvaluator, pairs: list[tuple[dict, dict]]) -> dict[str, Any]:
    evaluator.reset()
    for inputs, outputs in pairs:
        evaluator.process([inputs], [outputs])
    return evaluator.evaluate()


def test_evaluator_equals_the_function(
    implementation: type,
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    vocabulary: Vocabulary,
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    data, detections = make_coco(1)
    register_coco_format("random", write_json(data), tmp_path, vocabulary)
    evaluator = OpenVocabularyCOCOEvaluator("random", distributed=False, output_dir=str(tmp_path))
    results = _run(evaluator, outputs(data, detections, vocabulary.labels, masks=True))
    assert list(results) == ["bbox", "segm"]
    for task, found in results.items():
        expected = evaluate_coco_detections(data, detections, task, {"cat", "ball", "cup"})
        means = [f"{k}-{g}" for k in ("AP", "AP50") for g in ("seen", "unseen", "all")]
        for key in (*SUMMARY, *means):
            assert found[key] == pytest.approx(expected[key], abs=1e-3, nan_ok=True), key
        for key in ("AP", "AP50"):
            for name, value in expected[f"{key}_per_class"].items():
                assert found[f"{key}-{name}"] == pytest.approx(value, abs=1e-3, nan_ok=True)
    saved = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert sorted(d["category_id"] for d in saved) == sorted(d["category_id"] for d in detections)
    metadata = MetadataCatalog.get("random")
    assert metadata.thing_classes == list(vocabulary.labels), "the catalog entry stays as it is"
    assert len(DatasetCatalog.get("random")) == 12, "and the data set can be loaded afterwards"


def test_evaluator_with_unused_classes_and_images(
    implementation: type,
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    """Classes outside the vocabulary, and images without any of its classes, do not count."""
    data, detections = make_coco(2)
    vocabulary = Vocabulary((Category("kite", seen=False), Category("cat"), Category("unicorn")))
    options = {"drop_unlisted": True, "annotated_only": True}
    register_coco_format("part", write_json(data), tmp_path, vocabulary, **options)
    classes = (3, 12)
    annotations = [a for a in data["annotations"] if a["category_id"] in classes]
    images = {a["image_id"] for a in annotations}
    assert images == {record["image_id"] for record in DatasetCatalog.get("part")}
    assert 0 < len(images) < 12
    part = {
        "images": [i for i in data["images"] if i["id"] in images],
        "categories": [c for c in data["categories"] if c["id"] in classes],
        "annotations": annotations,
    }
    mine = [d for d in detections if d["category_id"] in classes]
    assert any(d["image_id"] not in images for d in mine), "some would be false positives"
    expected = evaluate_coco_detections(
        part, [d for d in mine if d["image_id"] in images], "bbox", {"cat"}
    )
    evaluator = OpenVocabularyCOCOEvaluator("part", distributed=False)
    pairs = outputs(data, mine, vocabulary.labels, masks=False)
    found = _run(evaluator, pairs)["bbox"]
    for key in (*SUMMARY, "AP50-seen", "AP50-unseen", "AP50-all"):
        assert found[key] == pytest.approx(expected[key], abs=1e-3, nan_ok=True), key
    assert math.isnan(found["AP-unicorn"])


@pytest.mark.parametrize("tasks", [None, ("bbox", "segm")])
def test_evaluator_without_detections(
    tasks: tuple[str, ...] | None,
    implementation: type,
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    vocabulary: Vocabulary,
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    data, _ = make_coco(0)
    register_coco_format("empty", write_json(data), tmp_path, vocabulary)
    evaluator = OpenVocabularyCOCOEvaluator("empty", tasks, distributed=False)
    results = _run(evaluator, outputs(data, [], vocabulary.labels, masks=True))
    assert list(results) == list(tasks or ("bbox",))
    for found in results.values():
        assert found["AP"] == found["AP50-unseen"] == found["AP50-seen"] == found["AP-cat"] == 0
        assert math.isnan(found["AP-cup"]) and math.isnan(found["AP50-cup"])


def test_evaluator_refuses_what_does_not_fit(
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    vocabulary: Vocabulary,
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(DatasetError, match="'nowhere' is not registered with a vocabulary"):
        OpenVocabularyCOCOEvaluator("nowhere")
    register_coco_format("gone", tmp_path / "gone.json", tmp_path, vocabulary, hint="from here")
    with pytest.raises(DatasetError, match=r"gone\.json does not exist; from here"):
        OpenVocabularyCOCOEvaluator("gone")
    data, detections = make_coco(0)
    register_coco_format("other", write_json(data), tmp_path, vocabulary)
    evaluator = OpenVocabularyCOCOEvaluator("other", distributed=False)
    pairs = outputs(data, detections, vocabulary.labels, masks=False)
    pairs[0][0]["image_id"] = 4
    with pytest.raises(DatasetError, match=r"not in data set 'other' .*such as image 4"):
        _run(evaluator, pairs)


@pytest.mark.golden
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_golden_function(iou_type: str, implementation: type, golden_dir: Path) -> None:
    gt, dt, expected = (
        json.loads((golden_dir / f"ov_coco_{part}.json").read_text())
        for part in ("gt", "dt", "expected")
    )
    found = evaluate_coco_detections(gt, dt, iou_type, expected["base"])
    _compare_golden(found, expected["expected"][iou_type])
    for key in ("AP", "AP50"):
        for name, value in expected["expected"][iou_type][f"{key}_per_class"].items():
            _close(found[f"{key}_per_class"][name], value)


@pytest.mark.golden
def test_golden_evaluator(
    implementation: type, golden_dir: Path, tmp_path: Path, outputs: Callable[..., Any]
) -> None:
    gt, dt, expected = (
        json.loads((golden_dir / f"ov_coco_{part}.json").read_text())
        for part in ("gt", "dt", "expected")
    )
    # In this order the class indices are not those of the category ids.
    names = [*expected["novel"], *expected["base"]]
    vocabulary = Vocabulary.from_names(names).with_unseen(expected["novel"])
    register_coco_format("golden", golden_dir / "ov_coco_gt.json", tmp_path, vocabulary)
    evaluator = OpenVocabularyCOCOEvaluator("golden", distributed=False)
    results = _run(evaluator, outputs(gt, dt, vocabulary.labels, masks=True))
    for task, wanted in expected["expected"].items():
        _compare_golden(results[task], wanted)
        for key in ("AP", "AP50"):
            for name, value in wanted[f"{key}_per_class"].items():
                _close(results[task][f"{key}-{name}"], value)


def _compare_golden(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected["summary"].items():
        _close(found[name], value)
    for group, ours in (("base", "seen"), ("novel", "unseen"), ("all", "all")):
        _close(found[f"AP50-{ours}"], expected[f"{group}_ap50"])
        _close(found[f"AP-{ours}"], expected[f"{group}_ap"])


def _close(found: float, expected: float | None) -> None:
    assert found == pytest.approx(math.nan if expected is None else expected, abs=1e-3, nan_ok=True)


def test_names_of_the_package_can_all_be_imported() -> None:
    assert sorted(densedet.evaluation.__all__) == sorted(densedet.evaluation._MODULES)
    for name in densedet.evaluation.__all__:
        assert callable(getattr(densedet.evaluation, name)), name
