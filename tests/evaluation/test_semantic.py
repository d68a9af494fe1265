"""The semantic evaluator: against Detectron2's, on label maps on disk, in several processes."""

import json
import logging
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from densedet import compat
from densedet.data import LabelReader, register_semantic_format
from densedet.errors import ConfigError, DatasetError
from densedet.evaluation import OpenVocabularySemanticEvaluator
from densedet.evaluation.semantic_iou import count_confusion, semantic_figures
from densedet.vocabulary import Category, Vocabulary

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make_data(tmp_path):
    """``make_data(truths, unseen=(), num_classes=4, ignore_label=255)``: registers "data"."""

    def make(truths, unseen=(), num_classes=4, ignore_label=255):
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir()
        for i, truth in enumerate(truths):
            dtype = np.uint8 if ignore_label <= 255 else np.uint16
            Image.new("RGB", truth.shape[::-1]).save(tmp_path / f"images/{i:02d}.png")
            Image.fromarray(truth.astype(dtype)).save(tmp_path / f"labels/{i:02d}.png")
        names = [f"c{i}" for i in range(num_classes)]
        vocabulary = Vocabulary(
            tuple(Category(name, kind="stuff", seen=name not in unseen) for name in names)
        )
        folders = tmp_path / "images", tmp_path / "labels"
        register_semantic_format("data", *folders, vocabulary, ignore_label=ignore_label)
        return DatasetCatalog.get("data")

    return make


def random_truths(seed, num_classes, ignore_label, images=4):
    rng = np.random.default_rng(seed)
    truths = [rng.integers(0, num_classes, tuple(rng.integers(9, 20, 2))) for _ in range(images)]
    for truth in truths:
        truth[rng.random(truth.shape) < 0.15] = ignore_label
    return truths


def random_scores(seed, num_classes, truths):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(num_classes, *truth.shape, generator=generator) for truth in truths]


def evaluate(evaluator, records, outputs):
    evaluator.reset()
    evaluator.process(records, [{"sem_seg": output} for output in outputs])
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.parametrize(("seed", "num_classes"), [(0, 4), (1, 30), (2, 150)])
def test_equal_to_detectron2(make_data, seed, num_classes):
    truths = random_truths(seed, num_classes, 255)
    truths = [np.where(truth == 2, 255, truth) for truth in truths]  # no pixel of class 2
    records = make_data(truths, num_classes=num_classes)
    scores = random_scores(seed, num_classes, truths)
    expected = evaluate(
        SemSegEvaluator("data", distributed=False, sem_seg_loading_fn=compat.load_sem_seg),
        records,
        scores,
    )
    found = evaluate(OpenVocabularySemanticEvaluator("data"), records, scores)
    both = {name for name in expected if not name.startswith(("Boundary", "min("))}
    assert len(both) == 4 + 2 * num_classes and both < set(found)
    for name in both:
        assert found[name] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name
    assert math.isnan(found["IoU-c2"]) and 0 < found["mIoU"] < found["mACC"] < 100
    assert found["mIoU-either"] < found["mIoU"] == found["mIoU-truth"] == found["mIoU-seen"]


@pytest.mark.parametrize(("num_classes", "ignore_label"), [(4, 255), (847, 65535), (255, 255)])
@pytest.mark.parametrize("mean_over", ["truth", "either"])
def test_figures_of_scores_and_of_maps(make_data, num_classes, ignore_label, mean_over):
    truths = random_truths(3, num_classes, ignore_label)
    unseen = [f"c{i}" for i in range(0, num_classes, 3)]
    records = make_data(truths, unseen, num_classes, ignore_label)
    scores = random_scores(3, num_classes, truths)
    maps = [one.numpy().argmax(axis=0) for one in scores]
    counts = [
        count_confusion(t, p, num_classes, ignore_label) for t, p in zip(truths, maps, strict=True)
    ]
    labels = [f"c{i}" for i in range(num_classes)]
    seen = [label not in unseen for label in labels]
    expected = semantic_figures(np.sum(counts, axis=0), labels, seen, mean_over)
    evaluator = OpenVocabularySemanticEvaluator("data", mean_over=mean_over)
    dtype = np.uint8 if num_classes < 256 else np.uint16
    for outputs in (scores, maps, [torch.from_numpy(one.astype(dtype)) for one in maps]):
        found = evaluate(evaluator, records, outputs)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=0, nan_ok=True), name


def test_a_pixel_without_class_is_wrong(make_data, tmp_path):
    (record,) = make_data([np.array([[0, 0, 1, 255]])])
    evaluator = OpenVocabularySemanticEvaluator("data", output_dir=tmp_path)
    scores = torch.zeros(4, 1, 4)
    scores[0, 0, 0] = scores[1, 0, 2] = 1
    scores[2, 0, 1] = scores[3, 0, 3] = math.nan
    for output in (scores, np.array([[0, 255, 1, 255]])):
        found = evaluate(evaluator, [record], [output])
        assert (found["IoU-c0"], found["IoU-c1"]) == (50, 100)
        assert (found["mIoU"], found["mIoU-either"]) == (75, 75)
        with np.load(tmp_path / "confusion_data.npz") as stored:
            confusion = stored["confusion"].tolist()
        assert confusion == [[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [0] * 5, [0] * 5]


def test_the_confusion_matrix_is_stored(make_data, tmp_path):
    records = make_data([np.array([[0, 1]]), np.array([[3], [3]])], unseen=["c1"])
    folder = tmp_path / "new/folder"
    evaluator = OpenVocabularySemanticEvaluator("data", output_dir=folder)
    for predicted in (0, 3):  # the second run replaces the file of the first
        evaluate(evaluator, records, [np.full((1, 2), predicted), np.full((2, 1), predicted)])
    assert [path.name for path in folder.iterdir()] == ["confusion_data.npz"]
    with np.load(folder / "confusion_data.npz") as stored:
        assert stored["confusion"].dtype == np.int64
        expected = np.zeros((4, 5))
        expected[[0, 1, 3], 3] = 1, 1, 2
        assert np.array_equal(stored["confusion"], expected)
        assert stored["labels"].tolist() == ["c0", "c1", "c2", "c3"]
        assert stored["seen"].tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    ("mean_over", "words"),
    [
        ("truth", "that occur in the truth (mean"),
        ("either", "in the truth or in a prediction (mean"),
    ],
)
def test_the_convention_is_logged(make_data, caplog, mean_over, words):
    (record,) = make_data([np.array([[0, 0]])])
    evaluator = OpenVocabularySemanticEvaluator("data", mean_over=mean_over)
    with caplog.at_level(logging.INFO, "densedet.evaluation.semantic"):
        evaluate(evaluator, [record], [np.array([[0, 1]])])
    text = caplog.text
    assert f"{words}_over={mean_over!r}); mIoU-truth 50.00, mIoU-either 25.00" in text
    assert "sem_seg on data: mIoU " in text and "images of data" not in text


def test_an_image_counts_once_and_missing_ones_are_refused(make_data):
    records = make_data([np.array([[0, 0]]), np.array([[1, 1]])])
    evaluator = OpenVocabularySemanticEvaluator("data")
    right, wrong = np.array([[0, 0]]), np.array([[3, 3]])
    found = evaluate(evaluator, [records[0], records[0], records[1]], [right, wrong, right])
    assert found["pACC"] == 50
    with pytest.raises(DatasetError, match=r"1 of 2 images of 'data' have no .* is .*01\.png; run"):
        evaluate(evaluator, records[:1], [right])


def test_an_image_from_several_processes_is_refused(make_data, monkeypatch):
    records = make_data([np.array([[0, 1]])])
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda data: [data, data])
    with pytest.raises(DatasetError, match="1 images of 'data' came from several processes"):
        evaluate(OpenVocabularySemanticEvaluator("data"), records, [np.array([[0, 0]])])


def test_the_seen_of_another_training(make_data):
    records = make_data([np.array([[0, 1]])])
    evaluator = OpenVocabularySemanticEvaluator("data")
    evaluator.set_seen([False, True, True, True])
    found = evaluate(evaluator, records, [np.array([[0, 0]])])
    assert (found["mIoU-seen"], found["mIoU-unseen"]) == (0, 50)
    with pytest.raises(ValueError, match="shorter"):
        evaluator.set_seen([True])


def test_an_own_reader_is_used(make_data):
    (record,) = make_data([np.array([[0, 1]])])

    def read(path):
        return 1 - LabelReader(4)(path)

    found = evaluate(OpenVocabularySemanticEvaluator("data", read), [record], [np.array([[1, 0]])])
    assert found["pACC"] == 100
    with pytest.raises(DatasetError, match=r"labels/00\.png: the truth has the label 4, .*again"):
        evaluate(
            OpenVocabularySemanticEvaluator("data", lambda path: np.array([[4, 0]])),
            [record],
            [np.array([[1, 0]])],
        )


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (
            torch.zeros(5, 1, 2),
            ConfigError,
            r"00\.png is torch.float32 of .*\[5, 1, 2\]; data has 4",
        ),
        (torch.zeros(1, 2), ConfigError, r"torch.float32 of the shape \[1, 2\]; .* its vocabulary"),
        (torch.zeros(2).long(), ConfigError, r"torch.int64 of the shape \[2\]"),
        (np.array([[0, 4]]), ConfigError, "has the class 4; data has the classes 0 to 3 and 255"),
        (np.array([[-1, 0]]), ConfigError, "has the class -1"),
        (
            torch.zeros(4, 2, 1),
            DatasetError,
            r"labels/00\.png has the shape \[1, 2\] \(height, width\), but .* \[2, 1\]; give",
        ),
    ],
)
def test_outputs_that_do_not_fit(make_data, output, error, message):
    (record,) = make_data([np.array([[0, 1]])])
    evaluator = OpenVocabularySemanticEvaluator("data")
    with pytest.raises(error, match=message):
        evaluator.process([record], [{"sem_seg": output}])


def test_what_is_no_data_set_is_refused(make_data):
    (record,) = make_data([np.array([[0, 5]])])
    with pytest.raises(ConfigError, match="mean_over='all': choose from truth, either"):
        OpenVocabularySemanticEvaluator("data", mean_over="all")
    evaluator = OpenVocabularySemanticEvaluator("data")
    with pytest.raises(DatasetError, match=r"00\.png has the label 5, .*labels prepared\?"):
        evaluator.process([record], [{"sem_seg": torch.zeros(4, 1, 2)}])
    with pytest.raises(DatasetError, match="image other.jpg is not of the data set 'data'"):
        evaluator.process([{"file_name": "other.jpg"}], [{"sem_seg": torch.zeros(4, 1, 2)}])
    with pytest.raises(DatasetError, match="'elsewhere' is not registered with a vocabulary"):
        OpenVocabularySemanticEvaluator("elsewhere")
    DatasetCatalog.register("bare", lambda: [{"file_name": "a.jpg"}])
    MetadataCatalog.get("bare").set(vocabulary=Vocabulary.parse("a;b"), ignore_label=255)
    with pytest.raises(DatasetError, match="'bare': image a.jpg has no label map; register"):
        OpenVocabularySemanticEvaluator("bare")


WORKER = """
import json, sys
import numpy as np
import torch.distributed as dist
from detectron2.data import DatasetCatalog
from densedet.data import register_semantic_format
from densedet.evaluation import OpenVocabularySemanticEvaluator
from densedet.vocabulary import Vocabulary

folder = sys.argv[1]
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
names = Vocabulary.from_names([f"c{i}" for i in range(4)])
register_semantic_format("data", f"{folder}/images", f"{folder}/labels", names)
records = DatasetCatalog.get("data")[rank::world]
predictions = np.load(f"{folder}/predictions.npy")[rank::world]
evaluator = OpenVocabularySemanticEvaluator("data", output_dir=folder)
evaluator.process(records, [{"sem_seg": one} for one in predictions])
with open(f"{folder}/result{rank}", "w") as file:
    json.dump(evaluator.evaluate(), file)
"""


def test_two_processes_equal_one(run_process, make_data, tmp_path):
    rng = np.random.default_rng(0)
    truths = rng.integers(0, 4, (5, 8, 9))
    predictions = rng.integers(0, 4, (5, 8, 9))
    records = make_data(truths)
    np.save(tmp_path / "predictions.npy", predictions)
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "worker.py"), str(tmp_path)]
    done = run_process(command, env=environment)

    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "result1").read_text()) == {}
    two = json.loads((tmp_path / "result0").read_text())["sem_seg"]
    one = evaluate(OpenVocabularySemanticEvaluator("data"), records, predictions)
    assert two == pytest.approx(one, abs=0, nan_ok=True) and 0 < one["mIoU"] < 50
    with np.load(tmp_path / "confusion_data.npz") as stored:
        assert stored["confusion"].sum() == truths.size
