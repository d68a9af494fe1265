"""Several data sets in one evaluation, and what results.json says beside the figures."""

import json

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from omegaconf import OmegaConf
from torch import nn

from densedet.engine.testing import data_sets
from densedet.engine.train import evaluate, train
from densedet.errors import ConfigError, DatasetError
from densedet.evaluation.evaluator import OpenVocabularyEvaluator
from densedet.vocabulary import Vocabulary
from densedet.weights import weights_digest

COLOURS = Vocabulary.parse("red;green").with_unseen(["green"])
SHAPES = "disc,red;square;star"


class Namer(nn.Module):
    """Says how many classes it is asked for, at every picture."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.vocabulary = COLOURS

    def set_vocabulary(self, vocabulary):
        self.vocabulary = vocabulary

    def forward(self, batch):
        if self.training:
            return {"loss": self.scale.square()}
        scores = torch.full((1,), float(len(self.vocabulary))) * self.scale.detach()
        return [{"instances": Instances((64, 64), scores=scores)} for _ in batch]


class Collector(DatasetEvaluator):
    """The pictures, and the sum of what the model says, under the name of a task."""

    def __init__(self, task="classes"):
        self.task = task

    def reset(self):
        self.said = []

    def process(self, inputs, outputs):
        self.said += [float(one["instances"].scores.sum()) for one in outputs]

    def evaluate(self):
        return {self.task: {"images": len(self.said), "sum": sum(self.said)}}


def register_shapes(name):
    """Two pictures of the tiny data, under another name and with other classes."""
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, lambda: DatasetCatalog.get("tiny")[:2])
        MetadataCatalog.get(name).vocabulary = Vocabulary.parse(SHAPES)


@pytest.fixture
def cfg(load_tiny):
    cfg = load_tiny("plain")
    cfg.model = L(Namer)()
    cfg.train.update(hooks=[], max_iter=2, seed=5)
    cfg.dataloader.evaluator = L(Collector)()
    other = OmegaConf.create(
        {"names": "shapes", "train": "not used"}, flags={"allow_objects": True}
    )
    other.register = [L(register_shapes)(name="shapes")]
    other.test = cfg.dataloader.test.copy()
    other.test.dataset.names = "${...names}"
    other.evaluator = L(Collector)()
    other.vocabulary = L(Vocabulary.parse)(text=SHAPES)
    cfg.dataloader.evaluators = {"shapes": other}
    return cfg


def _results(tmp_path):
    return json.loads((tmp_path / "out/results.json").read_text())


@pytest.mark.parametrize("job", [evaluate, train])
def test_each_data_set_with_its_own_words(cfg, tmp_path, job):
    results = job(cfg)
    expected = {
        "classes": {"images": 12, "sum": pytest.approx(24, rel=0.1)},
        "shapes": {"classes": {"images": 2, "sum": pytest.approx(6, rel=0.1)}},
    }
    assert results == expected
    content = _results(tmp_path)
    origin = content.pop("provenance")
    assert content == results
    # 3 classes for two pictures, 2 for twelve: the model has the same weights in both
    assert content["shapes"]["classes"]["sum"] * 4 == pytest.approx(content["classes"]["sum"])
    assert origin["seed"] == 5 and origin["vocabulary"] == COLOURS.digest()
    words = Vocabulary.parse(SHAPES).with_unseen(["square", "star"])  # "red" had labels
    assert origin["data_sets"] == {"shapes": {"vocabulary": words.digest()}}
    scale = torch.tensor(content["classes"]["sum"] / 24)
    assert origin["weights"] == weights_digest({"scale": scale})
    if job is train:
        lines = (tmp_path / "out/metrics.json").read_text().splitlines()
        (curve,) = [line for line in map(json.loads, lines) if "shapes/classes/sum" in line]
        assert curve["shapes/classes/sum"] == content["shapes"]["classes"]["sum"]


def test_the_model_has_its_own_words_again(cfg, monkeypatch):
    built = []
    monkeypatch.setattr(Namer, "__init__", _remembering(Namer.__init__, built))
    evaluate(cfg)
    assert built[0].vocabulary is COLOURS


def _remembering(original, built):
    def init(self):
        original(self)
        built.append(self)

    return init


def test_only_further_data_sets(cfg, tmp_path):
    del cfg.dataloader["evaluator"]
    assert list(evaluate(cfg)) == ["shapes"]
    assert "classes" not in _results(tmp_path)


def test_without_a_vocabulary_the_model_keeps_its_own(cfg, tmp_path):
    del cfg.dataloader.evaluators.shapes["vocabulary"]
    with pytest.raises(ConfigError, match="class 0 is 'red' in the model and 'disc' in the data"):
        evaluate(cfg)
    cfg.dataloader.evaluators.shapes.names = "tiny"
    assert evaluate(cfg)["shapes"]["classes"] == {"images": 12, "sum": 24.0}
    assert "data_sets" not in _results(tmp_path)["provenance"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.evaluators.shapes.pop("test"), "dataloader.evaluators.shapes has no test"),
        (lambda d: d.update(evaluators=["a"]), "evaluators must map names to data sets"),
        (lambda d: d.evaluators.update(x={}), "evaluators.x has no test and no evaluator"),
        (
            lambda d: d.evaluators.shapes.update(vocabluary=L(Vocabulary.parse)(text="a")),
            "evaluators.shapes.vocabluary is none of test, evaluator, vocabulary, register, train",
        ),
        (
            lambda d: d.evaluators.update(provenance=d.evaluators.shapes),
            "evaluators.provenance: results.json has something else there; rename it",
        ),
        (
            lambda d: d.evaluators.shapes.vocabulary.update(text="disc,red;star;square"),
            r"shapes \(3 classes\) in dataloader.evaluators.shapes.test: class 1 is 'star'",
        ),
        (
            lambda d: d.evaluator.update(task="shapes"),
            "evaluators.shapes has the name of what dataloader.evaluator reports; rename it",
        ),
    ],
)
def test_a_wrong_entry_is_named(cfg, tmp_path, change, message):
    change(cfg.dataloader)
    with pytest.raises(ConfigError, match=message):
        evaluate(cfg)
    assert not (tmp_path / "out/results.json").exists()


def test_a_model_without_vocabulary(cfg, load_tiny):
    cfg.model = load_tiny("plain").model
    with pytest.raises(ConfigError, match="shapes.vocabulary: PlainModel has no vocabulary to ch"):
        evaluate(cfg)


def test_what_cannot_be_built_shows_before_anything_is_evaluated(cfg, monkeypatch):
    def fail(self, *args):
        raise AssertionError("evaluated")

    monkeypatch.setattr(Collector, "process", fail)
    cfg.dataloader.evaluators.shapes.evaluator = L(_refuse)()
    with pytest.raises(DatasetError, match="no such data"):
        evaluate(cfg)


def test_what_was_evaluated_is_kept_when_a_later_data_set_fails(cfg, tmp_path):
    cfg.dataloader.evaluators.shapes.evaluator = L(Failing)()
    with pytest.raises(DatasetError, match="no such picture"):
        evaluate(cfg)
    content = _results(tmp_path)
    assert content["classes"]["images"] == 12
    assert content["provenance"]["unfinished"] == ["shapes"]


class Failing(Collector):
    """Cannot read the first picture."""

    def process(self, inputs, outputs):
        raise DatasetError("no such picture")


def test_a_name_that_is_taken_is_refused_before_the_next_evaluation(cfg):
    cfg.dataloader.evaluator.task = "shapes"
    cfg.dataloader.evaluators.shapes.evaluator = L(Failing)()
    with pytest.raises(ConfigError, match="evaluators.shapes has the name of what"):
        evaluate(cfg)


class Grouped(Collector, OpenVocabularyEvaluator):
    """Says how many classes count as seen."""

    vocabulary = Vocabulary.parse(SHAPES)

    def evaluate(self):
        return {self.task: {"seen": sum(self.vocabulary.seen)}}


@pytest.mark.parametrize(("trains", "seen"), [(True, 1), (False, 3)])
def test_seen_is_what_the_model_trained_on(cfg, monkeypatch, trains, seen):
    cfg.dataloader.evaluators.shapes.evaluator = L(Grouped)()
    original = Namer.__init__
    monkeypatch.setattr(
        Namer, "__init__", lambda self: original(self) or self.requires_grad_(trains) and None
    )
    assert evaluate(cfg)["shapes"]["classes"] == {"seen": seen}


def _refuse():
    raise DatasetError("no such data")


def test_an_entry_is_left_out_by_null(cfg):
    cfg.dataloader.evaluators.shapes = None
    assert list(evaluate(cfg)) == ["classes"]


def test_order_and_keys(cfg):
    found = [(d.name, d.key) for d in data_sets(cfg)]
    assert found == [("", "dataloader"), ("shapes", "dataloader.evaluators.shapes")]
    assert data_sets(OmegaConf.create({"dataloader": {"train": None}})) == []
