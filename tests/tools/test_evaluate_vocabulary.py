"""tools/evaluate_vocabulary.py as a user runs it, with the quickstart models on two scenes."""

import csv
import json
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from densedet import model_zoo
from densedet.cli import exit_code
from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build
from densedet.vocabulary import Category, Vocabulary

DETECTOR = "projects/fvit/configs/quickstart.py"
PANOPTIC = "projects/panoptic_fpn/configs/quickstart.py"
ZERO_SHOT = "projects/panoptic_fpn/configs/quickstart_zero_shot.py"
GUIDED = "projects/denseclip/configs/quickstart.py"
LOGGERS = ("densedet.engine", "detectron2.evaluation.evaluator")
DENSE = "model.backbone.bottom_up.bottom_up.dense=True"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two scenes, words with synonyms, and weights of models with untrained heads."""
    root = tmp_path_factory.mktemp("world")
    write_shapes_world(root, ShapesWorldRecipe(train=1, val=2))
    things = Vocabulary.named("shapes_world_kind", "thing")
    synonyms = [Category(c.label, (c.label, f"{c.label} toy"), seen=c.seen) for c in things]
    Vocabulary(tuple(synonyms)).save(root / "words.json")
    for name, config in (("detector", DETECTOR), ("panoptic", PANOPTIC), ("fixed", GUIDED)):
        torch.manual_seed(0)
        model = build(model_zoo.get_config(config).model, "model")
        Checkpointer(model, str(root / name)).save("model_final")
    return root


@pytest.fixture
def tool(load_script, world, capsys, tmp_path):
    """Run the tool in this process; return code, stdout and stderr."""
    for name in [n for n in set(DatasetCatalog) if n.startswith("shapes_world")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    module = load_script("tools/evaluate_vocabulary.py")

    def run(*arguments, config=DETECTOR, trained="detector"):
        own = [f"train.output_dir='{world}/{trained}'", "train.device=cpu"]
        data = f"dataloader.register.0.root='{world}'"
        code = exit_code(lambda: module.main(["--config-file", config, *arguments, data, *own]))
        return code, *capsys.readouterr()

    yield run
    for logger in map(logging.getLogger, LOGGERS):
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def read_table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_all_studies_of_a_detector(tool, world, tmp_path):
    out = tmp_path / "out"
    ensemble = "densedet.modeling.roi_heads.ScoreEnsemble,seen:0.1,unseen:0.5,temperature:27.0"
    code, said, err = tool(
        *("--output", str(out), "--distractors", "coco", "--counts", "0", "20"),
        *("--exponents", "0.5", "1", "--metrics", "segm/AP50", "bbox/AP50", DENSE),
        f"+model.roi_heads.box_predictor.ensemble={{_target_:{ensemble}}}",
        *("--synonyms", "0", "1", "model.vocabulary=null"),
        "+model.vocabulary={_target_:densedet.vocabulary.Vocabulary.from_file,"
        f"path:'{world}/words.json'}}",
    )
    assert code == 0, err
    assert said.endswith(f"written to {out}\n")
    names = ("distractors", "exponents", "synonyms")
    pictures = [f"{name}.png" for name in names]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*pictures, *(f"{name}.csv" for name in names), "results.json"]
    )
    content = json.loads((out / "results.json").read_text())
    assert [point["fraction"] for point in content["synonyms"]] == [0, 1]
    assert [point["count"] for point in content["distractors"]] == [0, 20]
    exponents = [(point["seen"], point["unseen"]) for point in content["exponents"]]
    assert exponents == [(0.1, 0.5), (0.1, 1), (0.5, 0.5), (1, 0.5)]
    digests = [[point["vocabulary"] for point in content[name]] for name in names]
    own = content["provenance"]["vocabulary"]
    assert [[digest == own for digest in part] for part in digests] == [
        *([True, False], [True] * 4, [True, False])
    ]
    for name in names:
        assert len(read_table(out / f"{name}.csv")) == len(content[name])
        assert Image.open(out / f"{name}.png").format == "PNG"


@pytest.mark.parametrize(
    ("config", "trained", "figure"),
    [(PANOPTIC, "panoptic", "panoptic_seg/PQ"), (ZERO_SHOT, "untrained", "sem_seg/mIoU")],
)
def test_distractors_of_the_other_models(tool, world, tmp_path, config, trained, figure):
    further = "star;ring;sand grass"
    arguments = ["--distractors", further, "--output", str(tmp_path), "--counts", "0", "3"]
    code, _, err = tool(*arguments, config=config, trained=trained)
    assert code == 0, err
    none, three = read_table(tmp_path / "distractors.csv")
    assert none["count"] == "0" and three["count"] == "3"
    assert none.keys() == three.keys() and none[figure] and three[figure]
    if config == ZERO_SHOT:  # the other one is not trained: it finds nothing either way
        assert float(none[figure]) != float(three[figure])
    assert not (world / "untrained").exists()


def test_the_default_folder_is_in_that_of_the_training(tool, world):
    code, _, err = tool("--distractors", "teapot;", "--counts", "1", "train.seed=3")
    assert code == 0, err
    found = sorted(p.name for p in (world / "detector/vocabulary").iterdir())
    assert found == ["distractors.csv", "distractors.png", "results.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no study is asked for: give synonyms, distractors or exponents"),
        (["--synonyms", "0.5"], "synonyms: none of the 64 categories of the model has one"),
        (["--synonyms", "0", "x"], "--synonyms 0 x: each must be a number"),
        (["--synonyms", "2"], "synonyms: 2.0 must lie in 0..1"),
        (["--exponents", "0.5"], "OpenVocabularyRCNN has no ensemble with the dense map"),
        (["--exponents", "-1"], "exponents: -1.0 must lie in 0..1"),
        (["--counts", "1"], "distractors: missing"),
        (["--distractors", "coco"], "counts: missing"),
        (["--distractors", "", "--counts", "1"], "vocabulary"),
        (["--distractors", "absent.txt", "--counts", "1"], "absent.txt"),
        (["--distractors", "coco", "--counts", "1.5"], "--counts 1.5: each must be a whole number"),
        (["--distractors", "coco", "--counts", "0", "81"], "81 distractors are asked for, but of"),
        (["--distractors", "red star;tea", "--counts", "2"], "only 1 are not in the model's voca"),
        (["--exponents", "1", "--seed", "a"], "--seed a: each must be a whole number"),
        (["--exponents", "1", "--weights", "absent.pth"], "weights absent.pth do not exist"),
        (["--exponents", "1", "model.vocabluary=1"], "there is no key 'vocabluary'"),
        (
            ["--distractors", "tea;", "--counts", "0", "1", "--metrics", "bbox/AP50", "AP"],
            "metrics: 'AP' is none of bbox/AP, bbox/AP50",
        ),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(tool, world, tmp_path, arguments, message):
    before = sorted(world.rglob("*"))
    code, _, err = tool("--output", str(tmp_path / "out"), *arguments)
    assert (code, err.startswith("error: "), err.count("\n")) == (2, True, 1), err
    assert message in err
    assert sorted(world.rglob("*")) == before and not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_shows_first(tool, tmp_path):
    (tmp_path / "file").write_text("mine")
    out = str(tmp_path / "file" / "deep")
    code, said, err = tool("--synonyms", "1", "--output", out, config=ZERO_SHOT)
    assert (code, said, err.count("\n")) == (2, "", 1)
    assert err == f"error: --output {out}: {tmp_path / 'file'} is no folder that can be written\n"


@pytest.mark.parametrize(
    ("config", "trained", "message"),
    [
        ("no/such/config.py", "detector", "no config 'no/such/config.py'"),
        (DETECTOR, "nothing", "nothing/model_final.pth do not exist"),
        ("projects/fvit/configs/quickstart_closed_set.py", "detector", "has no vocabulary to chan"),
        (GUIDED, "fixed", "so that another vocabulary needs retraining"),
    ],
)
def test_wrong_configs_and_weights(tool, tmp_path, config, trained, message):
    arguments = ["--output", str(tmp_path / "out"), "--distractors", "tea;", "--counts", "1"]
    code, _, err = tool(*arguments, config=config, trained=trained)
    assert (code, err.count("\n")) == (2, 1), err
    assert message in err and not list(tmp_path.iterdir())
