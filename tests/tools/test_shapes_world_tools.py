"""The tools around Shapes World, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parents[2]


def run(folder, tool, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_prepare_writes_and_then_uses_again(tmp_path):
    first = run(tmp_path, "prepare_shapes_world.py", "--train", 3, "--val", 2, "--pairs", 2)
    assert first.returncode == 0, first.stderr
    assert (
        "3 train scenes, 2 val scenes, 2 pairs" in first.stdout and "train scenes" in first.stderr
    )
    again = run(tmp_path, "prepare_shapes_world.py", "--train", 3, "--val", 2, "--pairs", 2)
    assert again.returncode == 0 and "complete already" in again.stderr


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("prepare_shapes_world.py", ["--train", "-1"], "train=-1 must not be negative"),
        ("prepare_shapes_world.py", ["--train", "many"], "invalid int value: 'many'"),
        ("prepare_shapes_world.py", ["--trian", "1"], "unrecognized arguments: --trian"),
        ("pretrain_clip.py", ["--iterations", "0"], "must be positive"),
        ("pretrain_clip.py", ["--seed", "-1"], "--seed -1 must not be negative"),
        ("pretrain_clip.py", ["--eval-only", "--weights", "absent.pt"], "absent.pt"),
        ("quickstart.py", ["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(tmp_path, tool, arguments, message):
    done = run(tmp_path, tool, *arguments)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and message in errors[0]
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    refused = run(tmp_path, "prepare_shapes_world.py", "--root", "file", "--train", 1, "--val", 1)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "cannot be written" in refused.stderr.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"


def test_another_data_set_is_not_overwritten(tmp_path):
    run(tmp_path, "prepare_shapes_world.py", "--train", 1, "--val", 1)
    refused = run(tmp_path, "prepare_shapes_world.py", "--train", 2, "--val", 1)
    assert refused.returncode == 2 and "--force" in refused.stderr
    assert len(list((tmp_path / "datasets/shapes_world/train").iterdir())) == 1


def test_pretraining_writes_weights_that_can_be_measured(tmp_path):
    weights = tmp_path / "tiny.safetensors"
    made = run(
        tmp_path,
        "pretrain_clip.py",
        *("--iterations", 2, "--batch-size", 8, "--scenes", 2, "--output", weights),
    )
    assert made.returncode == 0, made.stderr
    first = json.loads(made.stdout.splitlines()[-1])
    with safe_open(weights, framework="pt") as file:
        assert file.get_tensor("token_embedding.weight.rows").shape[0] < 100
    curve = json.loads((tmp_path / "tiny.curve.json").read_text())
    assert [point["iteration"] for point in curve] == [2]
    again = run(tmp_path, "pretrain_clip.py", "--eval-only", "--weights", weights, "--scenes", 2)
    assert json.loads(again.stdout.splitlines()[-1]) == first


STUFF = {"sky", "grass", "sand", "brick", "water", "wood"}


def test_quickstart_from_end_to_end_and_again(tmp_path):
    """A trial of `make demo`: few scenes, two iterations, everything else as it is."""
    trial = ("--train", 16, "--val", 8, "--max-iter", 2)
    first = run(tmp_path, "quickstart.py", *trial)
    assert first.returncode == 0, first.stdout[-1500:] + first.stderr[-1500:]
    output = tmp_path / "output" / "quickstart"
    figures = ("seen_ap50_box", "unseen_ap50_box", "seen_ap50_mask", "unseen_ap50_mask")
    metrics = json.loads((output / "metrics.json").read_text())
    assert {name: tuple(row) for name, row in metrics["detector"].items()} == {
        "closed_set": figures,
        "clip": figures,
        "clipself": figures,
    }
    regions = {"boxes_macc1", "masks_macc1", "stuff_macc1", "crops_macc1", "boxes_attention_macc1"}
    assert all(set(metrics["regions"][when]) >= regions for when in ("before", "after"))
    assert metrics["regions"]["before"] != metrics["regions"]["after"]
    page = (output / "report.html").read_text()
    for folder in ("demo", "demo_panoptic"):
        assert page.count("<figure>") == 2 * len(list((output / folder).glob("*.png"))) > 0
    assert {name: list(row) for name, row in metrics["zero_shot"].items()} == {
        "before": ["mIoU"],
        "after": ["mIoU"],
    }
    assert tuple(metrics["panoptic"]["panoptic"]) == ("PQ_seen", "PQ_unseen", "PQ_st", "SQ", "RQ")
    words = {r["label"] for r in json.loads((output / "demo_panoptic/segments.json").read_text())}
    assert words <= {"star", "ring", "ball", "plus", "dice", "heart", "kite", "cone"} | STUFF
    weights = output / "clip" / "model_final.pth"
    before = weights.stat().st_mtime_ns
    again = run(tmp_path, "quickstart.py", *trial)
    assert again.returncode == 0 and again.stdout.count("is complete already") == 8
    assert weights.stat().st_mtime_ns == before
