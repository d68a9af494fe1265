"""The panoptic evaluator on Shapes World, with Detectron2's own evaluator as the oracle."""

import contextlib
import copy
import io
import json
import math
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.evaluation import pq_compute

from densedet.data import register_panoptic_format
from densedet.data.segment_map import read_segment_map
from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.errors import ConfigError, DatasetError, ImageError
from densedet.evaluation import OpenVocabularyPanopticEvaluator
from densedet.vocabulary import Category, Vocabulary

NewProcesses = Callable[[], list[Any]]
Pairs = list[tuple[dict[str, Any], dict[str, Any]]]

DETECTRON2 = [f"{key}{group}" for key in ("PQ", "SQ", "RQ") for group in ("", "_th", "_st")]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_shapes_world(root, ShapesWorldRecipe(train=0, val=4, seed=3))
    return root / "shapes_world"


@pytest.fixture
def files(written: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The annotation file and the folder of the PNGs, one segment in five made a crowd."""
    data = json.loads((written / "annotations/panoptic_val.json").read_text())
    for annotation in data["annotations"]:
        for segment in annotation["segments_info"][::5]:
            segment["iscrowd"] = 1
    json_file = tmp_path / "panoptic.json"
    json_file.write_text(json.dumps(data))
    shutil.copytree(written / "panoptic_val", tmp_path / "maps")
    return json_file, tmp_path / "maps"


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.named("shapes_world_kind")


@pytest.fixture
def name(files: tuple[Path, Path], vocabulary: Vocabulary) -> str:
    register_panoptic_format("scenes", files[0], "images", files[1], vocabulary)
    return "scenes"


def predict(name: str, seed: int = 0) -> Pairs:
    """The truth, shifted, some of it named wrongly, cut in two, left out or added."""
    rng = np.random.default_rng(seed)
    vocabulary = MetadataCatalog.get(name).vocabulary
    pairs = []
    for record in DatasetCatalog.get(name):
        truth = read_segment_map(record["pan_seg_file_name"]).astype(np.int32)
        shifted = np.roll(truth, rng.integers(-3, 4, 2), axis=(0, 1))
        found = np.zeros_like(shifted)
        segments = []
        for segment in record["segments_info"]:
            mask = (shifted == segment["id"]) & (rng.random() > 0.15)
            half = mask & (
                np.arange(mask.shape[1]) < np.nonzero(mask)[1].mean() if mask.any() else 0
            )
            for part in (mask & ~half, half) if rng.random() < 0.2 else (mask,):
                if part.any():
                    wrong = rng.random() < 0.2
                    category = int(rng.integers(70)) if wrong else segment["category_id"]
                    found[part] = len(segments) + 1
                    segments.append(
                        {
                            "id": len(segments) + 1,
                            "category_id": category,
                            "isthing": vocabulary.kinds[category] == "thing",
                            "score": 0.5,
                        }
                    )
        output = {"panoptic_seg": (torch.from_numpy(found), segments)}
        inputs = {"image_id": record["image_id"], "file_name": record["file_name"]}
        pairs.append((inputs, output))
    return pairs


def run(evaluator: Any, pairs: Pairs) -> dict[str, float]:
    evaluator.reset()
    for sample, output in pairs:
        evaluator.process([sample], [output])
    return evaluator.evaluate()["panoptic_seg"]


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_detectron2(seed: int, name: str, vocabulary: Vocabulary) -> None:
    pairs = predict(name, seed)
    before = copy.deepcopy(pairs)
    found = run(OpenVocabularyPanopticEvaluator(name), pairs)
    assert [output["panoptic_seg"][1] for _, output in pairs] == [
        output["panoptic_seg"][1] for _, output in before
    ], "the predictions are not modified"
    expected = run(COCOPanopticEvaluator(name), pairs)
    assert sorted(expected) == sorted(DETECTRON2)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-9), key
    assert 10 < found["PQ"] < 90 and found["PQ_th"] != found["PQ_st"]

    for key in ("PQ", "SQ", "RQ"):
        per_class = {label: found[f"{key}-{label}"] for label in vocabulary.labels}
        occurring = {label for label, value in per_class.items() if not math.isnan(value)}
        assert 0 < len(occurring) < 70
        for group, is_seen in (("seen", True), ("unseen", False)):
            members = [c.label for c in vocabulary if c.seen is is_seen and c.label in occurring]
            mean = sum(per_class[label] for label in members) / len(members)
            assert found[f"{key}_{group}"] == pytest.approx(mean)


def test_perfect_predictions(name: str, files: tuple[Path, Path]) -> None:
    pairs = []
    for record in DatasetCatalog.get(name):
        ids = read_segment_map(record["pan_seg_file_name"]).astype(np.int64)
        # a panoptic map has no pixel of a segment that others cover
        segments = [s for s in record["segments_info"] if (ids == s["id"]).any()]
        pairs.append((record, {"panoptic_seg": (torch.from_numpy(ids), segments)}))
    found = run(OpenVocabularyPanopticEvaluator(name), pairs)
    for key in ("PQ", "SQ_th", "RQ_st", "PQ_seen", "PQ_unseen"):
        assert found[key] == pytest.approx(100), key


def test_workers_give_the_same(name: str) -> None:
    pairs = predict(name)
    expected = run(OpenVocabularyPanopticEvaluator(name), pairs)
    evaluator = OpenVocabularyPanopticEvaluator(name, workers=2)
    for _ in range(2):
        assert run(evaluator, pairs) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def test_each_image_counts_once_in_any_order(name: str) -> None:
    pairs = predict(name)
    expected = run(OpenVocabularyPanopticEvaluator(name), pairs)
    found = run(OpenVocabularyPanopticEvaluator(name), [*pairs[::-1], pairs[1]])
    assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


def _rank(rank: int, name: str, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/gloo", rank=rank, world_size=2)
    evaluator = OpenVocabularyPanopticEvaluator(name, output_dir=folder)
    for sample, output in predict(name)[rank::2]:
        evaluator.process([sample], [output])
    (folder / f"{rank}.json").write_text(json.dumps(evaluator.evaluate()))


def test_two_processes_give_the_same(name: str, tmp_path: Path) -> None:
    expected = run(OpenVocabularyPanopticEvaluator(name), predict(name))
    context = multiprocessing.get_context("fork")  # they have the registered data
    ranks = [context.Process(target=_rank, args=(rank, name, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        process.kill()
    assert json.loads((tmp_path / "1.json").read_text()) == {}
    found = json.loads((tmp_path / "0.json").read_text())["panoptic_seg"]
    assert found == pytest.approx(expected, rel=0, abs=0, nan_ok=True)
    assert len(json.loads((tmp_path / "predictions.json").read_text())["annotations"]) == 4


def test_predictions_are_written_on_demand(
    name: str, files: tuple[Path, Path], tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*"))
    pairs = predict(name)
    found = run(OpenVocabularyPanopticEvaluator(name), pairs)
    assert set(tmp_path.rglob("*")) == before

    folder = tmp_path / "output"
    run(OpenVocabularyPanopticEvaluator(name, output_dir=folder), pairs)
    with contextlib.redirect_stdout(io.StringIO()):
        again = pq_compute(
            str(files[0]),
            str(folder / "predictions.json"),
            gt_folder=str(files[1]),
            pred_folder=str(folder / "panoptic_predictions"),
        )
    assert 100 * again["All"]["pq"] == pytest.approx(found["PQ"], abs=1e-9)
    assert 100 * again["Things"]["rq"] == pytest.approx(found["RQ_th"], abs=1e-9)
    written = json.loads((folder / "predictions.json").read_text())
    truth = json.loads(files[0].read_text())
    assert all(written[key] == truth[key] for key in ("images", "categories"))


def test_a_group_without_categories(files: tuple[Path, Path]) -> None:
    """panopticapi divides by zero here."""
    categories = Vocabulary.named("shapes_world")
    all_seen = Vocabulary(tuple(Category(c.label, c.synonyms, c.kind) for c in categories))
    data = json.loads(files[0].read_text())
    stuff = {c["id"] for c in data["categories"] if not c["isthing"]}
    for annotation in data["annotations"]:
        segments = annotation["segments_info"]
        annotation["segments_info"] = [s for s in segments if s["category_id"] not in stuff]
    files[0].write_text(json.dumps(data))
    register_panoptic_format("things", files[0], "images", files[1], all_seen)
    pairs = [
        (sample, {"panoptic_seg": (torch.zeros(160, 160, dtype=torch.int32), [])})
        for sample in DatasetCatalog.get("things")
    ]
    found = run(OpenVocabularyPanopticEvaluator("things"), pairs)
    assert found["PQ"] == found["PQ_th"] == found["PQ_seen"] == 0
    assert math.isnan(found["PQ_st"]) and math.isnan(found["PQ_unseen"])


def test_wrong_predictions(name: str, files: tuple[Path, Path]) -> None:
    (sample, output), *others = predict(name)
    evaluator = OpenVocabularyPanopticEvaluator(name)
    ids, segments = output["panoptic_seg"]

    def process(message: str, *, image_id: int = 1, ids: Any = ids, segments: Any) -> None:
        with pytest.raises(DatasetError, match=message):
            evaluator.process([{"image_id": image_id}], [{"panoptic_seg": (ids, segments)}])

    first = segments[0]
    process("image 77, which is not annotated in", image_id=77, segments=segments)
    process(r"image 1 \(000000.jpg\): segments_info is None", segments=None)
    process("has category_id 70; give an index of the 70", segments=[{**first, "category_id": 70}])
    process("has category_id -1", segments=[{**first, "category_id": -1}])
    wrong = {**first, "isthing": not first["isthing"]}
    process("segment 1 has category_id .* give indices of the whole", segments=[wrong])
    process("id 1 is in its map, but not in its segments", segments=segments[1:])
    process("id -2 is in its map", ids=torch.where(ids == 1, -2, ids), segments=segments[1:])
    process("is float32; give segment ids as integers", ids=ids.float(), segments=segments)
    process("is 0x0 pixels", ids=ids[:0, :0], segments=[])
    process("is 10x160 pixels .*, the truth 160x160", ids=ids[:10], segments=segments)

    with pytest.raises(DatasetError, match="4 of 4 images of 'scenes' .* image 1 .000000.jpg"):
        evaluator.evaluate()
    next(files[1].glob("*0.png")).unlink()
    with pytest.raises(ImageError, match="000000.png does not exist"):
        evaluator.process([sample], [output])


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_in_workers(workers: int, name: str, new_processes: NewProcesses) -> None:
    evaluator = OpenVocabularyPanopticEvaluator(name, workers=workers)
    (sample, output), *_ = predict(name)
    evaluator.process([sample], [{"panoptic_seg": (output["panoptic_seg"][0], [])}])
    with pytest.raises(DatasetError, match=r"prediction of image 1 \(000000.jpg\): id 1 is in its"):
        evaluator.evaluate()
    assert new_processes() == []


@pytest.mark.parametrize("form", ["missing", None, 0, -4, "many", [9], float("nan"), str, float])
def test_truth_without_areas_or_boxes(
    form: Any, name: str, files: tuple[Path, Path], vocabulary: Vocabulary
) -> None:
    """The figures are those of the file that states its areas: they are the pixels of the PNGs."""
    data = json.loads(files[0].read_text())
    for annotation in data["annotations"]:
        for segment in annotation["segments_info"]:
            segment["bbox"] = []
            if form == "missing":
                segment.pop("area", None)
            else:
                segment["area"] = form(segment["area"]) if callable(form) else form
    path = files[0].with_name("without.json")
    path.write_text(json.dumps(data))
    register_panoptic_format("without", path, "images", files[1], vocabulary)
    figures = []
    for data_set in (name, "without"):
        evaluator = OpenVocabularyPanopticEvaluator(data_set)
        for sample, output in predict(name):
            evaluator.process([sample], [output])
        figures.append(evaluator.evaluate()["panoptic_seg"])
    assert figures[0] == pytest.approx(figures[1], rel=0, abs=0, nan_ok=True)


def test_other_data_sets_and_options(name: str) -> None:
    with pytest.raises(DatasetError, match="'nothing' is not registered with a vocabulary"):
        OpenVocabularyPanopticEvaluator("nothing")
    with pytest.raises(ConfigError, match="workers=-1"):
        OpenVocabularyPanopticEvaluator(name, workers=-1)
