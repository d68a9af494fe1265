"""Interpolated weights are evaluated and exported; the training never sees them."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from densedet.clip import create_clip, create_visual
from densedet.engine.config import build
from densedet.engine.hooks import PeriodicCheckpointer
from densedet.engine.interpolation import WeightInterpolation, interpolate
from densedet.engine.train import do_test, evaluate, train
from densedet.errors import CheckpointError, ConfigError, OutputError
from densedet.weights import load_strictly

TINY = {"model": "densedet-tiny", "pretrained": "shipped", "file_name": "clipself.safetensors"}


class Pair(nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher


def small(seed):
    """A module with weights, running statistics and a counter."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module(torch.randn(8, 3))
    nn.init.normal_(module[1].weight)
    nn.init.normal_(module[1].bias)
    module[1].num_batches_tracked.fill_(seed)
    return module


def weights(file: Path):
    return torch.load(file, weights_only=True)["model"]


def copied(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def tiny_pair():
    """The shipped CLIP, and a student that moved away from it."""
    teacher = create_visual("densedet-tiny", "shipped")
    student = copy.deepcopy(teacher)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return Pair(student, teacher)


def test_every_entry_is_interpolated():
    student, teacher = small(1), small(2)
    found = interpolate(student, teacher, 0.25)
    assert found.keys() == student.state_dict().keys()
    for name, value in found.items():
        own, other = student.state_dict()[name], teacher.state_dict()[name]
        if name == "1.num_batches_tracked":
            assert value == 1 and value.dtype == torch.int64
        else:
            torch.testing.assert_close(value, 0.25 * own + 0.75 * other, rtol=1e-6, atol=1e-7)
            assert not torch.equal(own, other)


def test_alpha_one_and_equal_towers_change_no_bit():
    student, teacher = small(1), small(2)
    assert same(interpolate(student, teacher, 1.0), student.state_dict())
    assert same(interpolate(student, copy.deepcopy(student), 0.7), student.state_dict())


def test_the_student_is_put_back_bit_for_bit_also_after_an_error():
    model = Pair(small(1), small(2))
    before = copied(model)
    parameter = model.student[0].weight
    expected = interpolate(model.student, model.teacher, 0.7)
    with (
        pytest.raises(RuntimeError, match="stop"),
        WeightInterpolation(0.7).evaluation_weights(model),
    ):
        assert model.student[0].weight is parameter  # the optimizer's
        assert same(model.student.state_dict(), expected)
        raise RuntimeError("stop")
    assert same(model.state_dict(), before)


def test_the_evaluation_sees_interpolated_weights_and_the_checkpoint_does_not(tmp_path, load_tiny):
    results = train(load_tiny("pair"))

    cfg = load_tiny("pair")
    state = weights(tmp_path / "out/model_final.pth")
    model = build(cfg.model, "model")
    load_strictly(model, state, "model_final.pth")
    alone = do_test(cfg, model)["tiny"]["score"]
    mixed = {
        name: 0.7 * value + 0.3 * state[name.replace("student", "teacher")]
        for name, value in state.items()
        if name.startswith("student")
    }
    model.load_state_dict(mixed, strict=False)
    by_hand = do_test(cfg, model)["tiny"]["score"]

    assert results["tiny"]["score"] == pytest.approx(by_hand, rel=1e-6)
    assert abs(alone - by_hand) > 1e-3

    whole = f"train.output_dir='{tmp_path}/without'"
    train(load_tiny("pair", "train.hooks=[]", whole))
    assert same(state, weights(tmp_path / "without/model_final.pth"))


def test_later_evaluations_of_a_finished_training_agree(tmp_path, load_tiny):
    first = train(load_tiny("pair"))["tiny"]["score"]
    final = f"{tmp_path}/out/model_final.pth"

    assert evaluate(load_tiny("pair", f"train.init_checkpoint='{final}'"))["tiny"]["score"] == first
    assert train(load_tiny("pair"), resume=True)["tiny"]["score"] == first
    alone = evaluate(load_tiny("pair", "train.hooks=[]"), weights=final)["tiny"]["score"]
    assert alone != pytest.approx(first, rel=1e-4)


def test_a_resumed_training_ends_with_the_same_weights(tmp_path, load_tiny):
    train(load_tiny("pair", "train.max_iter=3"))
    resumed = train(load_tiny("pair"), resume=True)
    whole = train(load_tiny("pair", f"train.output_dir='{tmp_path}/whole'"))

    files = [tmp_path / folder / "model_final.pth" for folder in ("out", "whole")]
    assert same(*map(weights, files))
    assert resumed["tiny"]["score"] == whole["tiny"]["score"]


def test_the_export_is_the_interpolated_clip(tmp_path, tiny_pair):
    before = copied(tiny_pair)
    WeightInterpolation(0.7, TINY).export(tiny_pair, tmp_path)

    written = create_clip("densedet-tiny", str(tmp_path / TINY["file_name"])).state_dict()
    original = create_clip("densedet-tiny", "shipped").state_dict()
    mixed = interpolate(tiny_pair.student.tower, tiny_pair.teacher.tower, 0.7)
    assert same(written, {**original, **{f"visual.{name}": v for name, v in mixed.items()}})
    assert same(tiny_pair.state_dict(), before)


def test_alpha_one_exports_the_student(tmp_path, tiny_pair):
    WeightInterpolation(1.0, TINY).export(tiny_pair, tmp_path)
    written = create_visual("densedet-tiny", str(tmp_path / TINY["file_name"]))
    assert same(written.state_dict(), tiny_pair.student.state_dict())


def test_without_export_nothing_is_written(tmp_path, tiny_pair):
    WeightInterpolation(0.7).export(tiny_pair, tmp_path)
    assert not list(tmp_path.iterdir())


class Folder:
    """A checkpointer that only notes its calls."""

    path_manager = None

    def __init__(self, folder, notes):
        self.save_dir, self.model, self.notes = str(folder), "the model", notes

    def save(self, name, **_):
        self.notes.append(name)

    def get_checkpoint_file(self):
        return ""


def test_results_are_exported_before_every_checkpoint(tmp_path):
    notes = []

    class Result:
        def evaluation_weights(self, model):
            raise AssertionError

        def export(self, model, folder):
            notes.append((model, folder))

    checkpointer = PeriodicCheckpointer(Folder(tmp_path, notes), 2, results=[Result()], max_iter=5)
    for iteration in range(5):
        checkpointer.step(iteration)
    export = ("the model", tmp_path)
    assert notes == [export, "model_0000001", export, "model_0000003", export, "model_final"]


@pytest.mark.parametrize("alpha", [0, -0.1, 1.01, 2.0, float("nan"), True, "0.7", None])
def test_a_wrong_alpha(alpha):
    with pytest.raises(ConfigError, match=r"must lie in \(0, 1\]"):
        WeightInterpolation(alpha)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pretrained": "no/such.pt"}, CheckpointError, "no/such.pt: no such checkpoint file"),
        ({"file_name": "clip.pt"}, ConfigError, r"plain name ending in \.safetensors"),
        ({"file_name": "a/b.safetensors"}, ConfigError, "plain name"),
        ({"folder": "x"}, ConfigError, "it needs model, pretrained, file_name"),
    ],
)
def test_a_wrong_export_is_found_before_the_training(change, error, message):
    with pytest.raises(error, match=message):
        WeightInterpolation(0.7, {**TINY, **change})


def test_a_model_without_teacher(load_tiny, tmp_path):
    name = "densedet.engine.interpolation.WeightInterpolation"
    cfg = load_tiny("plain", f"train.hooks=[{{_target_: {name}, alpha: 0.5}}]", "train.max_iter=1")
    with pytest.raises(ConfigError, match="PlainModel has no student and teacher"):
        train(cfg)
    assert not (tmp_path / "out/model_final.pth").exists()  # it was seen before the training


def test_towers_of_two_architectures():
    with pytest.raises(ConfigError, match=r"differ in 0\.weight"):
        interpolate(nn.Sequential(nn.Linear(3, 4)), nn.Sequential(nn.Linear(5, 4)), 0.5)
    with pytest.raises(ConfigError, match=r"differ in 1\.bias"):
        interpolate(small(1), nn.Sequential(nn.Linear(3, 4)), 0.5)


def test_a_folder_that_cannot_be_written(tmp_path, tiny_pair):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"clipself\.safetensors cannot be written"):
        WeightInterpolation(0.7, TINY).export(tiny_pair, tmp_path / "file")
