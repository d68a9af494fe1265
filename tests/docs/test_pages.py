"""Every command and every piece of Python of the guides is run, in the order of the page."""

import json
import re
from pathlib import Path

import pytest
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog

from densedet.data.shapes_world import register_shapes_world
from densedet.engine.config import load_config
from densedet.vocabulary import Vocabulary

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"```(bash|python)\n(.*?)```", flags=re.DOTALL)


def follow(page, folder, run_command):
    """Run the blocks of a page in a folder; return how many commands and pieces of Python."""
    counts = {"bash": 0, "python": 0}
    for language, text in BLOCK.findall((DOCS / page).read_text()):
        if language == "python":
            exec(text, {})
            counts["python"] += 1
            continue
        lines = text.replace("\\\n", " ").splitlines()
        for line in lines:
            if line.startswith("python "):
                run_command(folder, line)
                counts["bash"] += 1
            else:
                assert line.startswith("#") or line == "make demo", line
    return counts


@pytest.fixture
def inside(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    return workspace


def figures(path):
    return json.loads(path.read_text())["bbox"]


def test_your_own_data(inside, run_command):
    assert follow("custom_data.md", inside, run_command) == {"bash": 5, "python": 2}
    words = Vocabulary.named("shapes_world_kind", kind="thing")
    seen = [c.label for c in words if c.seen]
    output = inside / "output/custom"
    found = figures(output / "detector/results.json")
    classes = {f"AP-{label}" for label in words.labels}
    assert classes & found.keys() == {f"AP-{label}" for label in seen} and len(seen) == 48
    table = (output / "detector/vocabulary/distractors.csv").read_text().splitlines()
    assert len(table) == 3
    detections = json.loads((output / "demo/detections.json").read_text())
    assert {r["label"] for r in detections} <= {"red star", "blue ball", "kite"}
    assert len(list((output / "demo").glob("*.png"))) == 10
    every = figures(output / "unseen/results.json")
    assert classes <= every.keys() and {"AP50-seen", "AP50-unseen"} <= every.keys()

    # the labels that it trained on are those of Shapes World itself
    cfg = load_config("projects/fvit/configs/custom_tiny.py")
    for call in cfg.dataloader.register:
        instantiate(call)
    register_shapes_world("datasets")
    custom = DatasetCatalog.get("custom_train")
    own = DatasetCatalog.get("shapes_world_kind_train_seen")
    assert len(custom) == len(own) == 16

    def labels(records, names):
        return [
            [(names[a["category_id"]], a["bbox"]) for a in record["annotations"]]
            for record in records
        ]

    assert labels(custom, seen) == labels(own, words.labels)


def test_your_own_words(inside, run_command):
    assert follow("custom_vocabulary.md", inside, run_command) == {"bash": 0, "python": 3}
    example = re.search(
        r"```json\n(.*?)```", (DOCS / "custom_vocabulary.md").read_text(), re.DOTALL
    )
    words = Vocabulary.from_dict(json.loads(example[1]))
    assert (words.labels, words.kinds) == (("cat", "grass"), ("thing", "stuff"))
    assert words.seen == (True, False) and words.synonyms == ("cat", "kitten", "grass", "lawn")


def test_evaluation(inside, run_command):
    assert follow("evaluation.md", inside, run_command) == {"bash": 3, "python": 0}
    assert "provenance" in json.loads((inside / "output/evaluation/results.json").read_text())
    assert json.loads((inside / "output/seeds/seeds.json").read_text())["seeds"] == [0, 1]
    assert {p.suffix for p in (inside / "output/words").iterdir()} == {".csv", ".png", ".json"}


def test_export(inside, run_command):
    assert follow("export.md", inside, run_command) == {"bash": 3, "python": 2}
    written = {path.name for path in (inside / "output/export").iterdir()}
    assert written == {"stars.onnx", "dense.pt2", "semantic.onnx", "clip.pt2"}


def test_quickstart(inside, run_command):
    assert follow("quickstart.md", inside, run_command) == {"bash": 4, "python": 1}
    for folder in ("demo", "demo_panoptic", "demo_semantic", "demo_phrase"):
        assert len(list((inside / "output" / folder).glob("*.png"))) == 10
