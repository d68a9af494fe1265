"""tools/demo.py as a user runs it."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from densedet import model_zoo
from densedet.cli import exit_code
from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build

TOOL = Path(__file__).resolve().parents[2] / "tools" / "demo.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("demo", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def demo():
    return load_tool()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures, and weights of the quickstart model with untrained heads."""
    root = tmp_path_factory.mktemp("demo")
    (root / "in").mkdir()
    for i in range(3):
        Image.fromarray(make_scene(0, "val", i).image).save(root / "in" / f"{i}.jpg")
    torch.manual_seed(0)
    cfg = model_zoo.get_config("projects/fvit/configs/quickstart.py")
    Checkpointer(build(cfg.model, "model"), str(root)).save("weights")
    return root


def arguments(folder, output, *inputs, vocabulary="red star;blue ring,blue hoop"):
    return [
        *("--config-file", "projects/fvit/configs/quickstart.py"),
        *("--weights", str(folder / "weights.pth"), "--device", "cpu"),
        *("--input", *map(str, inputs), "--score-threshold", "0.0"),
        *("--vocabulary", vocabulary, "--output", str(output)),
    ]


def test_pictures_and_json(demo, folder, tmp_path):
    inputs = [folder / "in" / "0.jpg", folder / "in" / "[12].jpg"]
    assert demo.main(arguments(folder, tmp_path, *inputs)) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "0.png",
        "1.png",
        "2.png",
        "detections.json",
    ]
    found = json.loads((tmp_path / "detections.json").read_text())
    names = {r["image_id"]: Path(r["file_name"]).name for r in found}
    assert names == {1: "0.jpg", 2: "1.jpg", 3: "2.jpg"}
    labels = ["red star", "blue ring"]
    assert all(r["label"] == labels[r["category_id"] - 1] for r in found)
    assert {r["label"] for r in found} == set(labels)
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in names],
        "categories": [{"id": 1}, {"id": 2}],
        "annotations": [],
    }
    truth.createIndex()
    assert len(truth.loadRes(found).anns) == len(found)  # pycocotools takes them as results
    drawn = np.array(Image.open(tmp_path / "0.png"))
    plain = np.array(Image.open(folder / "in" / "0.jpg").resize(drawn.shape[1::-1]))
    assert min(drawn.shape[:2]) >= 640 and np.abs(drawn.astype(int) - plain).max() > 50


def test_words_that_are_not_shown_compete(demo, folder, tmp_path):
    def scores(*extra, words="red star;blue ring"):
        argv = arguments(folder, tmp_path / "out", folder / "in" / "0.jpg", vocabulary=words)
        assert demo.main([*argv, *extra]) == 0
        found = json.loads((tmp_path / "out" / "detections.json").read_text())
        return [r["label"] for r in found], [r["score"] for r in found]

    labels, both = scores()
    only, shown = scores("--show", "red star")
    assert set(labels) == {"red star", "blue ring"} and set(only) == {"red star"}
    assert shown == [s for s, label in zip(both, labels, strict=True) if label == "red star"]
    assert max(scores(words="red star")[1]) > max(shown)


def test_a_folder_and_a_vocabulary_file(demo, folder, tmp_path):
    (tmp_path / "words.txt").write_text("red star\nblue ring,blue hoop\n")
    words = str(tmp_path / "words.txt")
    assert demo.main(arguments(folder, tmp_path / "out", folder / "in", vocabulary=words)) == 0
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {r["image_id"] for r in found} == {1, 2, 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": "absent.jpg"}, "absent.jpg: no such image"),
        ({"input": "corrupt.jpg"}, "corrupt.jpg"),
        ({"vocabulary": ""}, "vocabulary"),
        ({"vocabulary": "red star;red star"}, "red star"),
        ({"weights": "absent.pth"}, "absent.pth"),
        ({"config": "absent.py"}, "absent.py"),
        ({"config": "projects/panoptic_fpn/configs/quickstart.py"}, "OpenVocabularyPanopticFPN"),
        ({"stuff": "red star"}, "red star"),
        ({"stuff": "grass"}, "--stuff: OpenVocabularyRCNN detects things alone"),
        ({"show": "green star"}, "green star"),
        ({"threshold": "2"}, "--score-threshold"),
        ({"override": "model.no_such_key=1"}, "there is no key 'no_such_key'"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(demo, folder, tmp_path, capsys, change, message):
    whole = (folder / "in" / "0.jpg").read_bytes()
    (tmp_path / "corrupt.jpg").write_bytes(whole[: len(whole) // 2])
    argv = arguments(folder, tmp_path / "out", folder / "in" / "0.jpg")

    def put(flag, value):
        argv[argv.index(flag) + 1] = value

    if "input" in change:
        put("--input", str(tmp_path / change["input"]))
    if "vocabulary" in change:
        put("--vocabulary", change["vocabulary"])
    if "show" in change:
        argv += ["--show", change["show"]]
    if "stuff" in change:
        argv += ["--stuff", change["stuff"]]
    if "weights" in change:
        put("--weights", str(tmp_path / change["weights"]))
    if "config" in change:
        put("--config-file", change["config"])
    if "threshold" in change:
        put("--score-threshold", change["threshold"])
    if "override" in change:
        argv += ["--opts", change["override"]]
    assert exit_code(lambda: demo.main(argv)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and message in error[0]
    assert not (tmp_path / "out").exists()


def test_pictures_of_the_same_name_are_refused(demo, folder, tmp_path, capsys):
    (tmp_path / "0.jpg").write_bytes((folder / "in" / "0.jpg").read_bytes())
    argv = arguments(folder, tmp_path / "out", folder / "in" / "0.jpg", tmp_path / "0.jpg")
    assert exit_code(lambda: demo.main(argv)) == 2
    assert "same name" in capsys.readouterr().err


def test_segments(demo, folder, tmp_path):
    argv = [
        *("--config-file", "projects/panoptic_fpn/configs/quickstart_zero_shot.py"),
        *("--input", str(folder / "in"), "--output", str(tmp_path), "--device", "cpu"),
        *("--vocabulary", "red star;blue ring", "--stuff", "grass;sand", "--show", "grass"),
    ]
    assert demo.main(argv) == 0
    names = ["0.png", "1.png", "2.png", "segments.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    found = json.loads((tmp_path / "segments.json").read_text())
    assert found and {(r["label"], r["category_id"], r["isthing"]) for r in found} == {
        ("grass", 3, False)
    }
    for result in found:
        picture = np.array(Image.open(tmp_path / f"{Path(result['file_name']).stem}.png"))
        plain = Image.open(result["file_name"]).resize(picture.shape[1::-1], Image.BICUBIC)
        assert np.abs(picture.astype(int) - np.array(plain)).max() > 50
