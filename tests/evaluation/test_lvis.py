"""LVIS metrics against the lvis package, through densedet's evaluator and Detectron2's."""

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator, LVISEvaluator
from lvis import LVIS, LVISEval, LVISResults

from densedet import compat
from densedet.data import register_coco_format
from densedet.errors import ConfigError, DatasetError, InstallationError
from densedet.evaluation import (
    OpenVocabularyLVISEvaluator,
    evaluate_lvis_detections,
    lvis_precision,
)
from densedet.vocabulary import Category, Vocabulary

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")
FREQUENCY = {12: "r", 3: "f", 40: "c", 7: "r", 5: "c"}
MakeCoco = Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]


def make_lvis(
    make_coco: MakeCoco, seed: int, images: int = 12
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Federated ground truth, and detections of which some are in images that do not say.

    "cup" has no ground truth; LVIS has no crowds.
    """
    data, detections = make_coco(seed, images)
    rng = np.random.default_rng(seed)
    for entry in data["categories"]:
        entry["frequency"] = FREQUENCY[entry["id"]]
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] != 5]
    for annotation in data["annotations"]:
        del annotation["iscrowd"]
    for image in data["images"]:
        here = {a["category_id"] for a in data["annotations"] if a["image_id"] == image["id"]}
        absent = [c for c in FREQUENCY if c not in here]
        image["neg_category_ids"] = [c for c in absent if rng.random() < 0.4]
        image["not_exhaustive_category_ids"] = [c for c in sorted(here) if rng.random() < 0.3]
    return data, detections


def lvis_package(
    data: dict[str, Any], detections: list[dict[str, Any]], iou_type: str, max_dets: int, path: Path
) -> tuple[dict[str, float], np.ndarray]:
    """The oracle: its figures, and AP of each class in the order of the ids; in percent."""
    compat.apply()
    results = copy.deepcopy(detections)
    if iou_type == "segm":
        for result in results:
            del result["bbox"]
    path.write_text(json.dumps(data))
    truth = LVIS(str(path))
    evaluation = LVISEval(truth, LVISResults(truth, results, max_dets=max_dets), iou_type)
    evaluation.run()
    precision = evaluation.eval["precision"][..., 0]
    per_class = [
        p[p > -1].mean() if (p > -1).any() else np.nan for p in np.moveaxis(precision, 2, 0)
    ]
    return {
        name: 100 * value if value >= 0 else math.nan for name, value in evaluation.results.items()
    }, 100 * np.array(per_class)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(("seed", "max_dets"), [(0, 300), (1, 300), (2, 300), (3, 4)])
def test_equal_to_lvis(
    iou_type: str, seed: int, max_dets: int, make_coco: MakeCoco, tmp_path: Path
) -> None:
    data, detections = make_lvis(make_coco, seed, images=16)
    counts = [sum(d["image_id"] == i["id"] for d in detections) for i in data["images"]]
    assert (max(counts) > max_dets) == (max_dets == 4)
    expected, per_class = lvis_package(data, detections, iou_type, max_dets, tmp_path / "gt.json")
    before = copy.deepcopy((data, detections))
    found = evaluate_lvis_detections(data, detections, iou_type, {"cat"}, max_dets=max_dets)
    assert (data, detections) == before, "the arguments are not modified"
    for name in FIGURES:
        assert found[name] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name
    names = {entry["id"]: entry["name"] for entry in data["categories"]}
    in_order = [found["AP_per_class"][names[i]] for i in sorted(names)]
    np.testing.assert_allclose(in_order, per_class, rtol=0, atol=1e-9)
    assert math.isnan(found["AP_per_class"]["cup"]), "no ground truth"
    assert found["AP_per_class"]["ball"] == 0, "never detected"
    kite, dog = (found["AP_per_class"][name] for name in ("kite", "dog"))
    assert found["AP-seen"] == pytest.approx(found["AP_per_class"]["cat"])
    assert found["AP-unseen"] == pytest.approx((kite + dog + 0) / 3)
    assert found["AP-all"] == pytest.approx(found["AP"])
    assert found["AP50-all"] == pytest.approx(found["AP50"])
    assert 0 < found["AP"] < found["AP50"] < 100


@pytest.mark.parametrize("pairs", [1, 40])
def test_how_many_classes_at_a_time_does_not_matter(
    pairs: int, make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, detections = make_lvis(make_coco, 2, images=16)
    together = evaluate_lvis_detections(data, detections, "segm", {"cat"})
    monkeypatch.setattr(lvis_precision, "PAIRS_AT_ONCE", pairs)
    calls = []
    original = lvis_precision._match
    monkeypatch.setattr(lvis_precision, "_match", lambda *a: calls.append(a[1]) or original(*a))
    parts = evaluate_lvis_detections(data, detections, "segm", {"cat"})
    assert [c for group in calls for c in group] == [3, 7, 12, 40]
    assert 1 < len(calls) <= 4 and (len(calls) == 4 or pairs > 1)
    for key in ("AP_per_class", "AP50_per_class"):
        assert parts.pop(key) == pytest.approx(together.pop(key), abs=0, nan_ok=True)
    assert parts == pytest.approx(together, abs=0, nan_ok=True)


def test_where_the_truth_does_not_say() -> None:
    """What a false detection costs: nothing in other images or beside unlisted objects."""
    data, _ = _tiny()
    right = {"image_id": 1, "category_id": 3, "bbox": [5, 30, 40, 20], "score": 0.5}
    wrong = {**right, "bbox": [60, 5, 10, 10], "score": 0.9}
    elsewhere = {**wrong, "image_id": 2}

    def ap(*detections: dict[str, Any]) -> float:
        return evaluate_lvis_detections(data, detections, "bbox", set())["APf"]

    assert ap(right) == ap(right, elsewhere) == pytest.approx(100)
    assert ap(right, wrong) == pytest.approx(50)
    data["images"][1]["neg_category_ids"] = [3]
    assert ap(right, elsewhere) == pytest.approx(50)
    data["images"][0]["not_exhaustive_category_ids"] = [3]
    assert ap(right, wrong) == pytest.approx(100)
    data["annotations"][2]["iscrowd"] = 1
    assert ap(right) == pytest.approx(100), "the format has no crowds"


def test_wrong_arguments(make_coco: MakeCoco, monkeypatch: pytest.MonkeyPatch) -> None:
    data, detections = make_lvis(make_coco, 0)
    with pytest.raises(ValueError, match="'box'"):
        evaluate_lvis_detections(data, detections, "box", set())
    with pytest.raises(DatasetError, match="image 5; evaluate"):
        evaluate_lvis_detections(data, [{**detections[0], "image_id": 5}], "bbox", set())
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "faster_coco_eval", None)
        with pytest.raises(InstallationError, match="pip install 'faster-coco-eval"):
            evaluate_lvis_detections(data, detections, "bbox", set())
    negative = data["images"][0].pop("neg_category_ids")
    with pytest.raises(
        DatasetError, match="image 100 of the ground truth has no list 'neg_category_id"
    ):
        evaluate_lvis_detections(data, detections, "bbox", set())
    data["images"][0]["neg_category_ids"] = negative
    del data["categories"][0]["frequency"]
    with pytest.raises(DatasetError, match="category 'kite' .* the frequency '', not one of r, c"):
        evaluate_lvis_detections(data, detections, "bbox", set())


def _run(evaluator: DatasetEvaluator, pairs: list[tuple[dict, dict]]) -> dict[str, Any]:
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


EVALUATORS = pytest.mark.parametrize("evaluator", [LVISEvaluator, OpenVocabularyLVISEvaluator])


@EVALUATORS
@pytest.mark.parametrize("order", ["rcf", "fcr"])
def test_rare_common_frequent(
    order: str,
    evaluator: type,
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
    built = evaluator("tiny_lvis", distributed=False, max_dets_per_image=300)
    found = _run(built, outputs(data, detections, vocabulary.labels, masks=False))["bbox"]
    assert found["APr"] == found["APf"] == pytest.approx(100, abs=1e-6)
    assert found["APc"] == 0
    assert found["AP"] == pytest.approx(200 / 3, abs=1e-6)
    if evaluator is OpenVocabularyLVISEvaluator:  # Detectron2's counts the second one too
        twice = outputs(data, detections, vocabulary.labels, masks=False) * 2
        assert _run(built, twice)["bbox"] == pytest.approx(found, nan_ok=True)


@pytest.mark.parametrize("tasks", [None, ("bbox", "segm")])
def test_no_detections(
    tasks: tuple[str, ...] | None,
    outputs: Callable[..., Any],
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    data, _ = _tiny()
    vocabulary = _vocabulary(data)
    register_coco_format("tiny_lvis", write_json(data), tmp_path, vocabulary, evaluator_type="lvis")
    evaluator = OpenVocabularyLVISEvaluator("tiny_lvis", tasks, distributed=False)
    results = _run(evaluator, outputs(data, [], vocabulary.labels, masks=False))
    assert list(results) == list(tasks or ("bbox",))
    for found in results.values():
        assert found["AP"] == found["APr"] == found["AP50-unseen"] == found["AP-thing c"] == 0
        assert math.isnan(found["APl"])
    stock = LVISEvaluator("tiny_lvis", distributed=False)
    figures = _run(stock, outputs(data, [], vocabulary.labels, masks=False))["bbox"]
    assert all(math.isnan(figures[name]) for name in FIGURES), "Detectron2's way of saying it"


def test_evaluator_with_another_order_and_another_class(
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    """Classes outside the vocabulary do not count; one that the file lacks has no ground truth."""
    data, detections = make_lvis(make_coco, 1)
    vocabulary = Vocabulary((Category("kite", seen=False), Category("unicorn"), Category("cat")))
    register_coco_format("some", write_json(data), tmp_path, vocabulary, drop_unlisted=True)
    mine = [d for d in detections if d["category_id"] in (3, 12)]
    evaluator = OpenVocabularyLVISEvaluator("some", distributed=False, output_dir=str(tmp_path))
    results = _run(evaluator, outputs(data, mine, vocabulary.labels, masks=True))
    assert list(results) == ["bbox", "segm"]
    for task, found in results.items():
        expected = evaluate_lvis_detections(data, mine, task, {"cat"})
        for key in ("AP", "AP50"):
            for name in ("cat", "kite"):
                value = expected[f"{key}_per_class"][name]
                assert found[f"{key}-{name}"] == pytest.approx(value, abs=1e-3), name
            assert math.isnan(found[f"{key}-unicorn"])
        assert found["AP-seen"] == pytest.approx(found["AP-cat"])
        assert found["APf"] == pytest.approx(found["AP-cat"])
        assert found["AP-unseen"] == pytest.approx(found["AP-kite"])
        assert found["APr"] == pytest.approx(found["AP-kite"])
    saved = json.loads((tmp_path / "lvis_instances_results.json").read_text())
    assert sorted(d["category_id"] for d in saved) == sorted(d["category_id"] for d in mine)


def test_evaluator_refuses_what_does_not_fit(
    make_coco: MakeCoco,
    outputs: Callable[..., Any],
    write_json: Callable[[Any], Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(DatasetError, match="'nowhere' is not registered with a vocabulary"):
        OpenVocabularyLVISEvaluator("nowhere")
    data, detections = make_lvis(make_coco, 0)
    vocabulary = _vocabulary(data)
    register_coco_format("gone", tmp_path / "gone.json", tmp_path, vocabulary, hint="from here")
    with pytest.raises(DatasetError, match=r"gone\.json does not exist; from here"):
        OpenVocabularyLVISEvaluator("gone")
    register_coco_format("some", write_json(data), tmp_path, vocabulary)
    with pytest.raises(ConfigError, match="task 'keypoints': choose from bbox, segm"):
        OpenVocabularyLVISEvaluator("some", ["bbox", "keypoints"])
    pairs = outputs(data, detections, vocabulary.labels, masks=False)
    with pytest.raises(ConfigError, match="no masks; leave 'segm' out"):
        _run(OpenVocabularyLVISEvaluator("some", ["segm"], distributed=False), pairs)
    evaluator = OpenVocabularyLVISEvaluator("some", distributed=False)
    pairs[0][0]["image_id"] = 4
    with pytest.raises(DatasetError, match=r"not in data set 'some' .*such as image 4"):
        _run(evaluator, pairs)


@pytest.mark.golden
@EVALUATORS
def test_golden(
    evaluator: type, golden_dir: Path, tmp_path: Path, outputs: Callable[..., Any]
) -> None:
    gt, dt, expected = _golden(golden_dir)
    vocabulary = _vocabulary(gt)
    json_file = golden_dir / "ov_lvis_gt.json"
    register_coco_format("golden_lvis", json_file, tmp_path, vocabulary, evaluator_type="lvis")
    assert len(DatasetCatalog.get("golden_lvis")) == len(gt["images"])
    built = evaluator("golden_lvis", distributed=False, max_dets_per_image=300)
    results = _run(built, outputs(gt, dt, vocabulary.labels, masks=True))
    for task, wanted in expected.items():
        for name in FIGURES:
            assert results[task][name] == pytest.approx(wanted[name], abs=1e-3), (task, name)


@pytest.mark.golden
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_golden_function(iou_type: str, golden_dir: Path) -> None:
    gt, dt, expected = _golden(golden_dir)
    most = max(sum(d["image_id"] == i["id"] for d in dt) for i in gt["images"])
    assert most > 300, "the limit matters"
    seen = [entry["name"] for entry in gt["categories"] if entry["frequency"] != "r"]
    found = evaluate_lvis_detections(gt, dt, iou_type, seen)
    for name in FIGURES:
        assert found[name] == pytest.approx(expected[iou_type][name], abs=1e-9), name
    for name, other in (("APr", "AP-unseen"), ("AP", "AP-all"), ("AP50", "AP50-all")):
        assert found[name] == pytest.approx(found[other], abs=1e-9)
    names = {str(entry["id"]): entry["name"] for entry in gt["categories"]}
    for category_id, value in expected[iou_type]["AP_per_class"].items():
        wanted = math.nan if value is None else value
        own = found["AP_per_class"][names[category_id]]
        assert own == pytest.approx(wanted, abs=1e-9, nan_ok=True), names[category_id]


def _golden(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    parts = ("gt", "dt", "expected")
    gt, dt, expected = (json.loads((folder / f"ov_lvis_{p}.json").read_text()) for p in parts)
    return gt, dt, expected["expected"]
