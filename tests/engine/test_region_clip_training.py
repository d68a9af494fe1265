"""A training of RegionCLIP from boxes to the exported CLIP."""

import json

import pytest
import torch

from densedet.clip import create_visual, read_state_dict
from densedet.engine.train import train
from densedet.engine.trainer import NonFiniteLossError


def weights(file):
    return torch.load(file, weights_only=True)["model"]


def test_the_loss_falls_and_the_export_is_the_interpolation_of_the_last_checkpoint(
    tmp_path, load_tiny
):
    train(load_tiny("region_clip", "train.max_iter=8"))

    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    losses = [r["total_loss"] for r in records if "total_loss" in r]
    assert min(losses[-2:]) < losses[0]
    state = weights(tmp_path / "out/model_final.pth")
    written = create_visual("densedet-tiny", str(tmp_path / "out/clip.safetensors")).state_dict()
    names = {name.partition(".")[2] for name in state}
    assert names == set(written)
    moved = 0
    for name, value in written.items():
        student, teacher = state[f"student.{name}"], state[f"teacher.{name}"]
        expected = 0.7 * student + 0.3 * teacher if value.is_floating_point() else student
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)
        moved += not torch.equal(student, teacher)
    assert 0 < moved < len(written)


def test_a_resumed_training_exports_the_same(tmp_path, load_tiny):
    train(load_tiny("region_clip", "train.max_iter=2"))
    train(load_tiny("region_clip"), resume=True)
    train(load_tiny("region_clip", f"train.output_dir='{tmp_path}/whole'"))

    one, two = (
        read_state_dict(tmp_path / folder / "clip.safetensors") for folder in ("out", "whole")
    )
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_failed_training_exports_nothing(tmp_path, load_tiny):
    with pytest.raises(NonFiniteLossError):
        train(load_tiny("region_clip", "optimizer.lr=1e30", "train.checkpointer.period=100"))
    assert not (tmp_path / "out/clip.safetensors").exists()
