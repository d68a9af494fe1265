import json
import logging
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset

from densedet.clip import ClassEmbeddings
from densedet.errors import ConfigError, DatasetError
from densedet.evaluation import RegionClassificationEvaluator
from densedet.evaluation.region_classification import class_scores, mean_class_accuracy
from densedet.vocabulary import Category, Vocabulary

ROOT = Path(__file__).resolve().parents[2]


def unit_embeddings(vocabulary):
    """A base vector for each category."""
    count = len(vocabulary)
    return ClassEmbeddings(torch.eye(count), torch.arange(count), torch.zeros(count))


@pytest.fixture
def zoo():
    """Data set "zoo": the things cat, dog, owl and the stuff sky, sea, sand, one dimension each."""
    things, stuff = ("cat", "dog", "owl"), ("sky", "sea", "sand")
    categories = [Category(name) for name in things]
    categories += [Category(name, kind="stuff") for name in stuff]
    MetadataCatalog.get("zoo").set(vocabulary=Vocabulary(tuple(categories)))
    return "zoo"


def sample(image_id, labels):
    labels = torch.tensor(labels, dtype=torch.int64)
    return {"image_id": image_id, "labels": labels, "is_thing": labels < 3}


def feature(*scores):
    return torch.tensor(scores, dtype=torch.float32)


@pytest.mark.golden
def test_reference_metric(golden_dir):
    expected = json.loads((golden_dir / "region_metric.json").read_text())["metric"]["exact"]
    with np.load(golden_dir / "region_metric.npz") as arrays:
        logits = torch.from_numpy(arrays["logits"])
        labels = torch.from_numpy(arrays["labels"]).long()
        is_thing = torch.from_numpy(arrays["category_is_thing"]).bool()
        hits = torch.from_numpy(arrays["correct_top5"])
    classes = logits.shape[1]
    best = logits.topk(hits.shape[1], dim=1).indices
    assert torch.equal(best == labels[:, None], hits)
    for kind, chosen in (("thing", is_thing[labels]), ("stuff", ~is_thing[labels])):
        found = mean_class_accuracy(hits[chosen], labels[chosen], classes)
        wanted = (expected[f"{kind}.macc1"], expected[f"{kind}.macc5"])
        assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.golden
def test_the_evaluator_gives_the_reference_metric(golden_dir):
    """The logits taken as region features against unit class vectors: the same order of classes."""
    expected = json.loads((golden_dir / "region_metric.json").read_text())["metric"]["exact"]
    with np.load(golden_dir / "region_metric.npz") as arrays:
        logits = torch.from_numpy(arrays["logits"])
        labels = arrays["labels"]
        is_thing = arrays["category_is_thing"]
    kinds = ["thing" if thing else "stuff" for thing in is_thing]
    categories = tuple(Category(f"c{i}", kind=kind) for i, kind in enumerate(kinds))
    MetadataCatalog.get("reference").set(vocabulary=Vocabulary(categories))
    evaluator = RegionClassificationEvaluator("reference", unit_embeddings, ["masks"])
    for image, rows in enumerate(torch.arange(len(labels)).split(7)):
        evaluator.process([sample(image, labels[rows])], [{"masks": logits[rows]}])
    results = evaluator.evaluate()["regions"]
    for figure in ("macc1", "macc5"):
        assert results[f"masks_{figure}"] == pytest.approx(100 * expected[f"thing.{figure}"])
        assert results[f"stuff_{figure}"] == pytest.approx(100 * expected[f"stuff.{figure}"])


def test_every_class_that_occurs_weighs_the_same():
    labels = torch.tensor([4, 4, 4, 1])
    hits = torch.tensor([[1, 0], [0, 1], [0, 0], [0, 1]]).bool()
    first, best = mean_class_accuracy(hits, labels, 6)
    assert (first, best) == pytest.approx(((1 / 3 + 0) / 2, (2 / 3 + 1) / 2))
    assert all(map(math.isnan, mean_class_accuracy(hits[:0], labels[:0], 6)))


def test_a_category_scores_as_its_best_synonym():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    embeddings = ClassEmbeddings(vectors, torch.tensor([0, 1, 0]), torch.zeros(2))
    scores = class_scores(torch.tensor([[0.0, 3.0], [5.0, 0.0]]), embeddings, 2)
    torch.testing.assert_close(scores, torch.tensor([[0.8, 1.0], [1.0, 0.0]]))


def test_figures_of_every_mode(zoo, caplog):
    evaluator = RegionClassificationEvaluator(
        zoo, unit_embeddings, ["boxes", "masks", "crops", "boxes_tokens"]
    )
    eye = torch.eye(6)
    samples = [sample("a", [0, 1, 3]), sample("b", [1, 4]), sample("c", [])]
    outputs = [
        {
            "boxes": eye[[0, 1, 3]],
            "masks": torch.stack([eye[0], feature(5, 0, 4, 3, 2, 1), eye[3]]),
            "crops": eye[[1, 0, 4]],
            "boxes_tokens": eye[[0, 1, 4]],
        },
        {
            "boxes": eye[[1, 0]],
            "masks": torch.stack([eye[1], feature(6, 5, 4, 3, 1, 2)]),
            "crops": eye[[1, 4]],
            "boxes_tokens": eye[[2, 4]],
        },
        {mode: torch.zeros(0, 6) for mode in ("boxes", "masks", "crops", "boxes_tokens")},
    ]
    with caplog.at_level(logging.INFO):
        evaluator.process(samples[:2], outputs[:2])
        evaluator.process(samples[2:], outputs[2:])
        results = evaluator.evaluate()["regions"]
    first = {name: value for name, value in results.items() if name.endswith("macc1")}
    assert first == {
        "boxes_macc1": 100.0,
        "stuff_boxes_macc1": 50.0,
        "masks_macc1": 75.0,
        "stuff_macc1": 50.0,
        "crops_macc1": 25.0,  # cat 0 of 1, dog 1 of 2
        "stuff_crops_macc1": 50.0,
        "boxes_tokens_macc1": 75.0,
        "stuff_boxes_tokens_macc1": 50.0,
    }
    # The sixth of six classes is not among the five best.
    assert (results["masks_macc5"], results["stuff_macc5"]) == (75.0, 50.0)
    assert results["mask_antialias"] == 0.0
    assert "5 regions of 3 images, 4 of 6 classes occur" in caplog.text
    assert "scored against all classes; mask cells: bicubic, antialias off" in caplog.text


def test_scored_against_its_own_kind(zoo, caplog):
    regions = sample(1, [1, 4])
    output = {"masks": torch.stack([feature(1, 3, 0, 9, 9, 9), feature(9, 9, 9, 0, 3, 1)])}

    def figures(**options):
        evaluator = RegionClassificationEvaluator(zoo, unit_embeddings, ["masks"], **options)
        evaluator.process([regions], [output])
        results = evaluator.evaluate()["regions"]
        return results["masks_macc1"], results["stuff_macc1"]

    assert figures() == (0.0, 0.0)
    with caplog.at_level(logging.INFO):
        assert figures(scored_against="kind") == (100.0, 100.0)
    assert "the classes of their own kind" in caplog.text


def test_a_kind_that_does_not_occur_is_nan(zoo):
    evaluator = RegionClassificationEvaluator(zoo, unit_embeddings, ["masks"], mask_antialias=True)
    evaluator.process([sample(1, [2])], [{"masks": feature(1, 0, 0, 0, 0, 0)[None]}])
    results = evaluator.evaluate()["regions"]
    assert (results["masks_macc1"], results["masks_macc5"]) == (0.0, 100.0)
    assert math.isnan(results["stuff_macc1"]) and math.isnan(results["stuff_macc5"])
    assert results["mask_antialias"] == 1.0
    evaluator.reset()
    assert math.isnan(evaluator.evaluate()["regions"]["masks_macc1"])


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_an_embedding_that_says_nothing_is_wrong(zoo, value):
    evaluator = RegionClassificationEvaluator(zoo, unit_embeddings, ["masks"])
    evaluator.process([sample(1, [0, 1])], [{"masks": torch.full((2, 6), value)}])
    results = evaluator.evaluate()["regions"]
    assert (results["masks_macc1"], results["masks_macc5"]) == (0.0, 0.0)


def test_cosines_are_computed_in_single_precision(zoo):
    evaluator = RegionClassificationEvaluator(zoo, unit_embeddings, ["masks"])
    close = torch.stack([feature(1, 0.9999, 0, 0, 0, 0), feature(0.9999, 1, 0, 0, 0, 0)])
    with torch.autocast("cpu", torch.bfloat16):
        evaluator.process([sample(1, [0, 1])], [{"masks": close}])
    half = feature(0, 0, 1, 0, 0, 0)[None].bfloat16()
    evaluator.process([sample(2, [2])], [{"masks": half}])
    assert evaluator.evaluate()["regions"]["masks_macc1"] == 100.0


def test_an_image_counts_once(zoo):
    evaluator = RegionClassificationEvaluator(zoo, unit_embeddings, ["masks"])
    eye = torch.eye(6)
    evaluator.process([sample(1, [0])], [{"masks": eye[[0]]}])
    evaluator.process([sample(2, [0])], [{"masks": eye[[1]]}])
    evaluator.process([sample(1, [0])], [{"masks": eye[[0]]}])
    assert evaluator.evaluate()["regions"]["masks_macc1"] == 50.0


def test_works_with_detectron2s_loop(zoo):
    def model(batch):
        return [{"boxes": torch.eye(6)[entry["labels"]]} for entry in batch]

    evaluator = RegionClassificationEvaluator(zoo, unit_embeddings, ["boxes"])
    loader = [[sample(1, [0, 3]), sample(2, [1])], [sample(3, [5])]]
    results = inference_on_dataset(model, loader, evaluator)
    assert results["regions"]["boxes_macc1"] == results["regions"]["stuff_boxes_macc1"] == 100.0


def test_wrong_use_is_refused(zoo):
    with pytest.raises(DatasetError, match="'no_such' is not registered with a vocabulary"):
        RegionClassificationEvaluator("no_such", unit_embeddings)
    with pytest.raises(ConfigError, match="scored_against='things'"):
        RegionClassificationEvaluator(zoo, unit_embeddings, scored_against="things")
    evaluator = RegionClassificationEvaluator(zoo, unit_embeddings)
    with pytest.raises(ConfigError, match="gives no masks, crops .it gives boxes"):
        evaluator.process([sample(1, [0])], [{"boxes": torch.eye(6)[:1]}])
    with pytest.raises(ConfigError, match="mask_antialias=False in the evaluator, but True"):
        entry = {**sample(1, [0]), "mask_antialias": True}
        evaluator.process([entry], [dict.fromkeys(("boxes", "masks", "crops"), torch.eye(6)[:1])])


WORKER = """
import json, sys
import torch
import torch.distributed as dist
from detectron2.data import MetadataCatalog
from densedet.clip import ClassEmbeddings
from densedet.evaluation import RegionClassificationEvaluator
from densedet.vocabulary import Vocabulary

data = torch.load(sys.argv[1], weights_only=True)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
MetadataCatalog.get("many").set(vocabulary=Vocabulary.from_dict(json.loads(data["vocabulary"])))
classes = len(MetadataCatalog.get("many").vocabulary)
embeddings = ClassEmbeddings(torch.eye(classes), torch.arange(classes), torch.zeros(classes))
evaluator = RegionClassificationEvaluator("many", lambda vocabulary: embeddings, ["masks"])
ids = range(len(data["labels"]))
# Both start with the same images, as samplers repeat some to fill up the last batch.
for image_id in [*ids[:world], *ids[rank::world]]:
    sample = {"image_id": image_id, "labels": data["labels"][image_id]}
    evaluator.process([sample], [{"masks": data["features"][image_id]}])
with open(f"{sys.argv[2]}{rank}", "w") as file:
    json.dump(evaluator.evaluate(), file)
"""


def test_two_processes_count_every_region_once(run_process, tmp_path):
    generator = torch.Generator().manual_seed(0)
    kinds = ["thing"] * 7 + ["stuff"] * 5
    vocabulary = Vocabulary(tuple(Category(f"c{i}", kind=k) for i, k in enumerate(kinds)))
    counts = torch.randint(0, 9, (21,), generator=generator).tolist()
    data = {
        "vocabulary": json.dumps(vocabulary.to_dict()),
        "labels": [torch.randint(0, 12, (n,), generator=generator) for n in counts],
        "features": [torch.rand(n, 12, generator=generator) for n in counts],
    }
    torch.save(data, tmp_path / "data.pt")
    (tmp_path / "worker.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / name) for name in ("worker.py", "data.pt", "result")]
    done = run_process(command, env=environment)

    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 images came from several processes" in done.stderr
    assert json.loads((tmp_path / "result1").read_text()) == {}
    results = json.loads((tmp_path / "result0").read_text())["regions"]
    hits = torch.cat(data["features"]).topk(5, dim=1).indices == torch.cat(data["labels"])[:, None]
    things = torch.cat(data["labels"]) < 7
    for prefix, chosen in (("masks", things), ("stuff", ~things)):
        expected = mean_class_accuracy(hits[chosen], torch.cat(data["labels"])[chosen], 12)
        found = [results[f"{prefix}_macc{k}"] for k in (1, 5)]
        assert found == pytest.approx([100 * value for value in expected])
        assert 0 < expected[0] < expected[1] < 1
