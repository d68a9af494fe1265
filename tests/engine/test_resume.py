"""Exact resume: data order, augmentation, sampling, optimizer and schedule go on as if unbroken."""

import json
import logging
import signal
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L

from densedet.engine.schedule import PolyFloor
from densedet.engine.train import train


def _difference(first: Path, second: Path) -> float:
    one, two = (torch.load(f, weights_only=True)["model"] for f in (first, second))
    assert one.keys() == two.keys()
    return max(float((one[key] - two[key]).abs().max()) for key in one)


def test_a_killed_and_resumed_training_ends_with_the_same_weights(
    tmp_path, overrides, load_tiny, run_tool
):
    killed = run_tool("rcnn", *overrides, env={"TINY_KILL_AT": "7"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000005.pth"

    train(load_tiny("rcnn"), resume=True)
    train(load_tiny("rcnn", f"train.output_dir='{tmp_path}/whole'"))

    final = "model_final.pth"
    assert _difference(tmp_path / "out" / final, tmp_path / "whole" / final) <= 1e-6
    # the comparison would notice: the last iterations move the weights by far more
    assert _difference(tmp_path / "whole/model_0000008.pth", tmp_path / "whole" / final) > 1e-3
    records = [json.loads(t) for t in (tmp_path / "out/metrics.json").read_text().splitlines()]
    losses = [r for r in records if "total_loss" in r]
    assert [r["iteration"] for r in losses] == [9]


def test_the_tool_resumes_after_a_sigkill(tmp_path, overrides, run_tool):
    assert run_tool("rcnn", *overrides, env={"TINY_KILL_AT": "4"}).returncode == -signal.SIGKILL
    (tmp_path / "out/.model_0000005.abc.pth").write_bytes(b"unfinished")

    resumed = run_tool("rcnn", "--resume", *overrides)

    assert resumed.returncode == 0, resumed.stderr
    assert "Starting training from iteration 3" in resumed.stdout
    kept = {f.name for f in (tmp_path / "out").iterdir() if f.suffix == ".pth"}
    assert kept == {"model_0000005.pth", "model_0000008.pth", "model_final.pth"}  # max_to_keep=2
    assert json.loads((tmp_path / "out/results.json").read_text())["tiny"]["images"] == 12


def test_resume_without_a_checkpoint_starts_at_zero(tmp_path, load_tiny, caplog):
    with caplog.at_level(logging.INFO, logger="densedet"):
        results = train(load_tiny("plain", "train.max_iter=2"), resume=True)

    assert "no checkpoint in" in caplog.text
    assert results["tiny"]["images"] == 12
    state = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    assert state["iteration"] == 1


def test_a_fresh_start_in_a_used_folder_warns_and_begins_again(tmp_path, load_tiny, caplog):
    train(load_tiny("plain", "train.max_iter=2"))
    train(load_tiny("plain", "train.max_iter=4"))

    assert "has checkpoints of an earlier training" in caplog.text
    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    losses = [json.loads(line) for line in lines if "total_loss" in line]
    assert [r["iteration"] for r in losses] == [0, 1, 2, 3]
    assert (tmp_path / "out/metrics.old.json").exists()


def test_resuming_a_longer_training_keeps_one_curve_and_the_right_rate(tmp_path, load_tiny):
    train(load_tiny("plain", "train.max_iter=3"))
    train(load_tiny("plain", "train.max_iter=6"), resume=True)

    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    losses = [json.loads(line) for line in lines if "total_loss" in line]
    assert [r["iteration"] for r in losses] == [0, 1, 2, 3, 4, 5]
    warm = [0.001 + 0.999 * i / 4 for i in range(4)] + [1.0, 1.0]
    assert [r["lr"] for r in losses] == pytest.approx([0.01 * w for w in warm], rel=1e-6)


def test_resuming_a_decay_to_a_floor(tmp_path, load_tiny):
    def load(*more):
        cfg = load_tiny("plain", "train.max_iter=6", *more)
        cfg.lr_multiplier = L(PolyFloor)(
            max_iter="${train.max_iter}", floor=0.001, warmup_iters=3, warmup_factor=0.1
        )
        cfg.optimizer.params.lr_factors = {"stem": 0.0}
        return cfg

    whole = f"train.output_dir='{tmp_path}/whole'"
    train(load(whole))
    part = load("train.max_iter=4")
    part.lr_multiplier.max_iter = 6
    train(part)
    train(load(), resume=True)

    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    losses = [json.loads(line) for line in lines if "total_loss" in line]
    warm = [1 - 0.9 * (1 - i / 3) if i < 3 else 1 for i in range(6)]
    expected = [w * (0.009 * (1 - i / 6) ** 0.9 + 0.001) for i, w in enumerate(warm)]
    assert [r["lr"] for r in losses] == pytest.approx(expected, rel=1e-6)
    assert _difference(tmp_path / "out/model_final.pth", tmp_path / "whole/model_final.pth") == 0
    state = torch.load(tmp_path / "out/model_final.pth", weights_only=True)
    rates = [group["lr"] for group in state["trainer"]["optimizer"]["param_groups"]]
    assert rates == pytest.approx([0.001, 0.001]), "at the end, also from a base rate of 0"


def test_resuming_a_finished_training_only_evaluates(tmp_path, load_tiny):
    first = train(load_tiny("plain", "train.max_iter=2"))
    before = (tmp_path / "out/model_final.pth").read_bytes()

    assert (
        train(load_tiny("plain", "train.max_iter=2"), resume=True)["tiny"]["score"]
        == (first["tiny"]["score"])
    )
    assert (tmp_path / "out/model_final.pth").read_bytes() == before
