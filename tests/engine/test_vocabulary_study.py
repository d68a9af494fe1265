"""Vocabulary studies of a model that knows the truth: what it loses on purpose must be missing.

The evaluators are the real ones, on three scenes of Shapes World.
"""

import csv
import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

from densedet.data.images import read_image
from densedet.data.segment_map import read_segment_map
from densedet.data.shapes_world_scenes import make_scene
from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build, load_config
from densedet.engine.vocabulary_settings import Studies
from densedet.engine.vocabulary_study import WithoutDistractors, run_studies, write_studies
from densedet.errors import CheckpointError, ConfigError, VocabularyError
from densedet.modeling.pixel_scores import StoredScores
from densedet.modeling.roi_heads import ScoreEnsemble
from densedet.vocabulary import Category, Vocabulary
from densedet.weights import weights_digest

IMAGES = 3
FURTHER = Vocabulary.parse("teapot;lamp;fork")


def words(name, kind=None):
    """A class list in which each category has a synonym."""
    categories = [
        Category(c.label, (c.label, f"{c.label} thing"), c.kind, c.seen)
        for c in Vocabulary.named(name, kind)
    ]
    return Vocabulary(tuple(categories))


class Oracle(nn.Module):
    """Finds all that it is asked for by its name; calls ``lost`` by the first further word.

    With exponents, it finds seen classes if theirs is below 0.5 and unseen ones if theirs is above.
    """

    built: list["Oracle"] = []

    def __init__(self, vocabulary, lost="", exponents=None, refuse_longer_than=1000):
        super().__init__()
        self.vocabulary = self.own = vocabulary
        self.lost = vocabulary.index(lost) if lost else -1
        self.ensemble = ScoreEnsemble(*exponents, 1.0) if exponents else None
        self.limit, self.calls = refuse_longer_than, 0
        Oracle.built.append(self)

    def set_vocabulary(self, vocabulary):
        if len(vocabulary) > self.limit:
            raise VocabularyError("another vocabulary needs retraining")
        self.vocabulary = vocabulary

    def called(self, category):
        """What a category of the truth is found as; None if it is not found."""
        asked = self.vocabulary.categories[category]
        if asked.label not in asked.synonyms:
            return None
        if self.ensemble:
            share = 1 - self.ensemble.seen if asked.seen else self.ensemble.unseen
            if share <= 0.5:
                return None
        further = len(self.vocabulary) > len(self.own)
        return len(self.own) if category == self.lost and further else category

    def forward(self, batch):
        self.calls += len(batch)
        return [self.output(record) for record in batch]


class PanopticOracle(Oracle):
    def output(self, record):
        ids = torch.from_numpy(read_segment_map(record["pan_seg_file_name"]).astype(np.int64))
        segments = []
        for segment in record["segments_info"]:
            category = self.called(segment["category_id"])
            if category is None:
                ids[ids == segment["id"]] = 0
            else:
                segments.append({"id": segment["id"], "category_id": category})
        return {"panoptic_seg": (ids, segments)}


class SemanticOracle(Oracle):
    def output(self, record):
        path = record["file_name"].replace("/val/", "/semantic_val/").replace(".jpg", ".png")
        labels = torch.from_numpy(read_image(path)[..., 0].astype(np.int64))
        found = torch.tensor([self.called(i) for i in range(70)])[labels]
        scores = torch.nn.functional.one_hot(found, len(self.vocabulary))
        return {"sem_seg": scores.movedim(-1, 0).float()}


class BoxOracle(Oracle):
    def output(self, record):
        records = DatasetCatalog.get("shapes_world_kind_val")
        (truth,) = (r for r in records if r["image_id"] == record["image_id"])
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], 0) for a in truth["annotations"]]
        found = [self.called(a["category_id"]) for a in truth["annotations"]]
        return {
            "instances": Instances(
                (record["height"], record["width"]),
                pred_boxes=Boxes(torch.tensor(boxes)),
                pred_classes=torch.tensor(found),
                scores=torch.ones(len(boxes)),
            )
        }


class Recorder(DatasetEvaluator):
    """Keeps what it is given."""

    def process(self, inputs, outputs):
        self.given = inputs, outputs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_shapes_world(root, ShapesWorldRecipe(train=1, val=IMAGES))
    return root


@pytest.fixture
def make_config(world, tmp_path):
    """``make_config(data, oracle, vocabulary, **arguments)``: an oracle and its evaluation."""
    for name in [n for n in set(DatasetCatalog) if n.startswith("shapes_world")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    Oracle.built.clear()

    def make(data, oracle, name, kind=None, **arguments):
        cfg = load_config(f"configs/common/data/{data}.py")
        cfg.train = load_config("configs/common/train.py").train
        cfg.train.update(output_dir=str(tmp_path / "out"), device="cpu")
        cfg.dataloader.register[0].root = str(world)
        cfg.model = L(oracle)(vocabulary=L(words)(name=name, kind=kind), **arguments)
        return cfg

    return make


@pytest.fixture
def panoptic(make_config):
    return lambda **more: make_config(
        "shapes_world_panoptic", PanopticOracle, "shapes_world_kind", **more
    )


def occurring(world, file="panoptic_val"):
    """The labels in the validation scenes."""
    content = json.loads((world / f"shapes_world/annotations/{file}.json").read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    found = [a.get("segments_info", [a]) for a in content["annotations"]]
    return sorted({names[s["category_id"]] for segments in found for s in segments})


def is_unseen(label):
    return label.endswith(("ball", "kite"))


def share(labels, missing):
    """Percent of the labels that are not missing."""
    return pytest.approx(100 * sum(label not in missing for label in labels) / len(labels))


def test_panoptic_segments_of_distractors_are_void(panoptic, world):
    labels = occurring(world)
    lost = next(label for label in labels if " " in label and not is_unseen(label))
    outcome = run_studies(panoptic(lost=lost), Studies(distractors=FURTHER, counts=[0, 1, 3]))
    none, one, three = outcome.points
    assert none.figures["panoptic_seg/PQ"] == 100
    for point in (one, three):
        assert point.figures["panoptic_seg/PQ"] == share(labels, [lost])
        assert point.figures["panoptic_seg/PQ_st"] == point.figures["panoptic_seg/PQ_unseen"] == 100
        assert point.results["panoptic_seg"][f"PQ-{lost}"] == 0


def test_pixels_of_distractors_have_no_class(make_config, world, tmp_path):
    labels = occurring(world)
    cfg = make_config("shapes_world_semantic", SemanticOracle, "shapes_world", lost=labels[0])
    outcome = run_studies(cfg, Studies(distractors=FURTHER, counts=[2]))
    (point,) = outcome.points
    assert point.figures["sem_seg/mIoU-either"] == share(labels, [labels[0]])
    results = point.results["sem_seg"]
    assert {results[f"IoU-{label}"] for label in labels[1:]} == {100.0}
    assert results[f"IoU-{labels[0]}"] == 0 and 50 < results["pACC"] < 100
    assert not (tmp_path / "out").exists()  # the evaluator stores a confusion matrix


def test_detections_of_distractors_are_dropped(make_config, world):
    labels = occurring(world, "instances_val")
    cfg = make_config("shapes_world", BoxOracle, "shapes_world_kind", kind="thing", lost=labels[0])
    outcome = run_studies(cfg, Studies(distractors=FURTHER, counts=[0, 3]))
    assert [point.figures["bbox/AP50"] for point in outcome.points] == [
        pytest.approx(100),
        share(labels, [labels[0]]),
    ]
    assert outcome.points[1].results["bbox"][f"AP50-{labels[0]}"] == 0
    assert outcome.metrics == ["bbox/AP50", "bbox/AP50-seen", "bbox/AP50-unseen"]


def test_only_what_was_won_by_a_distractor_is_taken_away():
    scores = torch.tensor([[[5.0, 1, 1]], [[2, 1, 0]], [[4, 2, 0]], [[4, 0, float("nan")]]])
    ids = torch.tensor([[7, 3, 3, 0, 9]], dtype=torch.int32)
    segments = [
        {"id": 7, "category_id": 2, "isthing": True},
        {"id": 3, "category_id": 1, "isthing": False},
        {"id": 9, "category_id": 3, "isthing": False},
    ]
    instances = Instances((1, 5), pred_classes=torch.tensor([3, 1, 2, 0]), scores=torch.arange(4.0))
    output = {
        "sem_seg": StoredScores(scores.clone()),
        "panoptic_seg": (ids.clone(), list(segments)),
        "instances": instances,
        "other": "kept",
    }
    recorder = Recorder()
    WithoutDistractors(recorder, 2).process(["in"], [output])
    inputs, (kept,) = recorder.given
    assert inputs == ["in"] and kept["other"] == "kept" and kept.keys() == output.keys()
    nan = float("nan")
    expected = torch.tensor([[[5, nan, nan]], [[2, nan, nan]]])
    torch.testing.assert_close(kept["sem_seg"].full(), expected, equal_nan=True)
    assert kept["panoptic_seg"][0].tolist() == [[0, 3, 3, 0, 0]]
    assert kept["panoptic_seg"][1] == [segments[1]]
    assert kept["instances"].pred_classes.tolist() == [1, 0]
    assert kept["instances"].scores.tolist() == [1, 3]
    # the model's own output is as it was
    torch.testing.assert_close(output["sem_seg"].full(), scores, equal_nan=True)
    assert torch.equal(output["panoptic_seg"][0], ids) and len(output["instances"]) == 4


def test_distractors_take_places_among_the_best_detections():
    torch.manual_seed(0)
    cfg = load_config(
        "projects/fvit/configs/quickstart.py",
        ["model.roi_heads.box_predictor.test_topk_per_image=9"],
    )
    model = build(cfg.model, "model").eval()
    own, further = model.vocabulary.categories[:10], model.vocabulary.categories[10:]
    batch = [{"image": torch.from_numpy(make_scene(0, "val", 0).image).permute(2, 0, 1)}]
    found = {}
    for count in (0, 20):
        model.set_vocabulary(Vocabulary((*own, *further[:count])))
        recorder = Recorder()
        with torch.no_grad():
            outputs = model(batch)
        assert len(outputs[0]["instances"]) == 9
        WithoutDistractors(recorder, len(own)).process(batch, outputs)
        found[count] = recorder.given[1][0]["instances"]
    assert len(found[0]) == 9 and 0 < len(found[20]) < 9
    assert (found[20].pred_classes < len(own)).all()


def test_categories_asked_for_by_a_synonym(panoptic, world):
    labels = occurring(world)
    outcome = run_studies(panoptic(), Studies(fractions=[0, 0.5, 1], seed=3))
    for point, swapped in zip(outcome.points, [0, 35, 70], strict=True):
        asked = point.setting.vocabulary
        missing = {c.label for c in asked if c.synonyms != (c.label, f"{c.label} thing")}
        assert len(missing) == swapped == point.setting.values["swapped"]
        assert point.figures["panoptic_seg/PQ"] == share(labels, missing)
    assert 0 < outcome.points[1].figures["panoptic_seg/PQ"] < 100


def test_exponents_and_what_is_shared(panoptic):
    studies = Studies(
        fractions=[0], distractors=FURTHER, counts=[0], exponents=[0, 0.25, 0.75, 1], seed=1
    )
    outcome = run_studies(panoptic(exponents=[0.25, 0.75]), studies)
    exponents = [point for point in outcome.points if point.setting.study == "exponents"]
    seen, unseen = (
        [point.figures[f"panoptic_seg/PQ_{group}"] for point in exponents]
        for group in ("seen", "unseen")
    )
    assert seen == [100, 100, 100, 100, 100, 100, 0, 0]
    assert unseen == [0, 0, 100, 100, 100, 100, 100, 100]
    # 10 settings, of which 4 are the model as it is
    assert len(outcome.points) == 10 and outcome.model.calls == 7 * IMAGES
    assert (outcome.model.ensemble.seen, outcome.model.ensemble.unseen) == (0.25, 0.75)
    assert outcome.model.vocabulary is outcome.model.own


def test_files(panoptic, world, tmp_path):
    studies = Studies(fractions=[0, 1], distractors=FURTHER, counts=[2], exponents=[0.5], seed=6)
    outcome = run_studies(panoptic(exponents=[0.25, 0.75]), studies, None, ["panoptic_seg/SQ"])
    write_studies(tmp_path / "study", outcome)
    content = json.loads((tmp_path / "study/results.json").read_text())
    tables = {}
    for name in ("synonyms", "distractors", "exponents"):
        with open(tmp_path / f"study/{name}.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
        assert len(tables[name]) == len(content[name])
        for row, record in zip(tables[name], content[name], strict=True):
            for key, value in row.items():
                task, _, figure = key.rpartition("/")
                written = record["results"][task][figure] if task else record[key]
                assert value == str(written)
    groups = ("", "_th", "_st", "_seen", "_unseen")
    figures = [f"panoptic_seg/{name}{g}" for g in groups for name in ("PQ", "SQ", "RQ")]
    assert list(tables["exponents"][0]) == ["swept", "seen", "unseen", *figures]
    assert list(tables["distractors"][0]) == ["count", *figures]
    assert list(tables["synonyms"][0]) == ["fraction", "swapped", *figures]
    assert sorted(p.name for p in (tmp_path / "study").glob("*.png")) == [
        *("distractors.png", "exponents.png", "synonyms.png")
    ]
    own, swapped = (record["vocabulary"] for record in content["synonyms"])
    assert own == words("shapes_world_kind").digest() == content["provenance"]["vocabulary"]
    assert swapped == outcome.points[1].setting.vocabulary.digest() != own
    assert content["provenance"]["seed"] == 6
    assert len(content["synonyms"][0]["results"]["panoptic_seg"]) == 15 + 3 * 70


def test_what_the_model_refuses_shows_before_anything_is_evaluated(panoptic):
    studies = Studies(fractions=[0, 1], distractors=FURTHER, counts=[3])
    with pytest.raises(VocabularyError, match="needs retraining"):
        run_studies(panoptic(refuse_longer_than=72), studies)
    (model,) = Oracle.built
    assert model.calls == 0 and model.vocabulary is model.own


def test_an_unknown_metric_ends_the_run_after_its_first_evaluation(panoptic):
    message = "'panoptic_seg/PQ-seen' is none of panoptic_seg/PQ, panoptic_seg/SQ"
    with pytest.raises(ConfigError, match=message):
        run_studies(panoptic(), Studies(fractions=[0, 1]), None, ["panoptic_seg/PQ-seen"])
    (model,) = Oracle.built
    assert model.calls == IMAGES and model.vocabulary is model.own


class TrainedOracle(PanopticOracle):
    """Finds something if its weight is 1."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.weight = nn.Parameter(torch.zeros(()))

    def called(self, category):
        return super().called(category) if self.weight == 1 else None


def test_trained_weights_are_found_or_missed(make_config, tmp_path):
    cfg = make_config("shapes_world_panoptic", TrainedOracle, "shapes_world_kind")
    studies = Studies(fractions=[0])
    with pytest.raises(ConfigError, match=r"out/model_final.pth do not exist; train with"):
        run_studies(cfg, studies)
    model = TrainedOracle(vocabulary=words("shapes_world_kind"))
    nn.init.ones_(model.weight)
    Checkpointer(model, str(tmp_path)).save("other")
    with pytest.raises(ConfigError, match=r"absent.pth do not exist"):
        run_studies(cfg, studies, tmp_path / "absent.pth")
    for weights in (tmp_path / "other.pth", None):
        outcome = run_studies(cfg, studies, weights)
        assert outcome.points[0].figures["panoptic_seg/PQ"] == 100
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out/model_final.pth").write_bytes((tmp_path / "other.pth").read_bytes())
    write_studies(tmp_path / "study", outcome)
    content = json.loads((tmp_path / "study/results.json").read_text())
    assert content["provenance"]["weights"] == weights_digest({"weight": torch.tensor(1.0)})
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit TrainedOracle"):
        run_studies(cfg, studies, tmp_path / "other.pth")


def test_configs_that_cannot_be_studied(make_config, panoptic):
    studies = Studies(fractions=[0])
    cfg = panoptic()
    del cfg.dataloader["evaluator"]
    with pytest.raises(ConfigError, match="needs model, dataloader.test and dataloader.evaluator"):
        run_studies(cfg, studies)
    cfg = panoptic()
    cfg.model = L(nn.Identity)()
    with pytest.raises(ConfigError, match="Identity has no vocabulary to change"):
        run_studies(cfg, studies)
    cfg = make_config("shapes_world_panoptic", PanopticOracle, "shapes_world_kind", kind="thing")
    with pytest.raises(ConfigError, match="model.vocabulary .64 classes. is not that of the data"):
        run_studies(cfg, studies)
    cfg = panoptic()
    cfg.dataloader.evaluators = {"ignored": {"test": None, "evaluator": None}}
    assert run_studies(cfg, studies).points[0].figures["panoptic_seg/PQ"] == 100
