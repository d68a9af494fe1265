"""Names that other programs put around weights."""

import logging

import pytest
import torch
from torch import nn

from densedet.clip.checkpoints import read_state_dict
from densedet.engine.checkpoint import Checkpointer, read_checkpoint
from densedet.errors import CheckpointError

STATE = {"visual.a": torch.arange(6.0), "logit_scale": torch.tensor(3.0)}
OTHER = {name: value + 1 for name, value in STATE.items()}


def prefixed(prefix, state=None):
    return {prefix + name: value for name, value in (state or STATE).items()}


@pytest.mark.parametrize(
    "content",
    [
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
        prefixed("model."),
        prefixed("model.module."),
        prefixed("ema_model."),
        prefixed("model_ema.module."),
        *[
            prefixed(prefix)
            for prefix in (
                "clip.",
                "clip_model.",
                "net.",
                "model.clip.",
                "student.",
                "teacher.",
                "online_model.",
                "averaged_model.",
                "_fsdp_wrapped_module.",
                "_forward_module.",
            )  # fmt: skip
        ],
        {"state_dict": {**prefixed("model."), "loss.weight": torch.zeros(1)}},
        {"net": STATE, "epoch": 3},
        {"weights": STATE},
        {"params": STATE},
        {"params_ema": STATE},
        {"model": {"module": STATE}},
        {"visual._fsdp_wrapped_module.a": STATE["visual.a"], "logit_scale": STATE["logit_scale"]},
        {"visual._orig_mod.a": STATE["visual.a"], "logit_scale": STATE["logit_scale"]},
        {**prefixed("module."), "n_averaged": torch.tensor(5)},
        {"model_ema": STATE},
        {"state_dict_ema": prefixed("module.")},
        {"epoch": 3, "ema_model": STATE},
        {"model_state_dict": STATE, "optimizer": {}},
        {"state_dict": prefixed("model."), "pytorch-lightning_version": "2.0"},
        {"model_ema": {name: value.half() for name, value in STATE.items()}},
    ],
    ids=lambda content: ",".join(content)[:40],
)
def test_a_prefix_of_all_names_and_wrappers_are_taken_away(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    found = read_state_dict(tmp_path / "x.pt")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_an_average_beside_the_weights_is_not_mixed_up(tmp_path, caplog):
    torch.save({"model": STATE, "model_ema": OTHER}, tmp_path / "both.pt")
    with caplog.at_level(logging.WARNING, logger="densedet"):
        found = read_state_dict(tmp_path / "both.pt")
    assert torch.equal(found["visual.a"], STATE["visual.a"])
    assert "'model' are read, their moving average under 'model_ema' is not" in caplog.text
    torch.save({**prefixed("online_model."), **prefixed("ema_model.", OTHER)}, tmp_path / "mix.pt")
    message = r"mix\.pt: holds a moving average under 'ema_model\.'.*startswith\('ema_model\.'\)"
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "mix.pt")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"params": STATE, "params_ema": OTHER}, r"torch\.load\(FILE\)\['params'\], 'weights"),
        ({**prefixed("net."), **prefixed("copy.", OTHER)}, r"k\.startswith\('net\.'\)\}"),
    ],
)
def test_two_sets_of_weights_are_refused_with_the_line_that_saves_one(tmp_path, content, line):
    torch.save(content, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match=rf"two\.pt: holds several sets of weights.*{line}"):
        read_state_dict(tmp_path / "two.pt")


def test_a_mapping_that_unfolds_to_any_size_is_looked_at_once(tmp_path):
    content = {"net": STATE}
    for _ in range(3):
        content = {f"{index}": content for index in range(1000)}
    torch.save(content, tmp_path / "wide.pt")
    assert read_state_dict(tmp_path / "wide.pt").keys() == STATE.keys()


def test_of_a_distillation_the_student_is_read_though_the_teacher_is_whole(tmp_path):
    student = {"student.tower.a": OTHER["visual.a"]}
    torch.save({"model": {**student, **prefixed("teacher.")}}, tmp_path / "both.pt")
    found = read_state_dict(tmp_path / "both.pt")
    assert found.keys() == {"visual.a"} and torch.equal(found["visual.a"], OTHER["visual.a"])


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_names_of_transformers_are_called_that(tmp_path, prefix):
    names = ["text_model.embeddings.token_embedding.weight", "vision_model.post_layernorm.bias"]
    names += ["visual_projection.weight", "logit_scale"]
    torch.save({prefix + name: torch.ones(2) for name in names}, tmp_path / "model.bin")
    message = r"model\.bin: has the names of Hugging Face transformers.*open_clip"
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(tmp_path / "model.bin")


def test_checkpoints_of_compiled_models_and_averages(tmp_path):
    model = nn.Linear(3, 3)
    compiled = torch.compile(model)  # nothing is compiled before the first call
    assert "_orig_mod.weight" in compiled.state_dict()
    Checkpointer(compiled, str(tmp_path)).save("compiled")
    assert read_checkpoint(str(tmp_path / "compiled.pth"))["model"].keys() == {"weight", "bias"}
    torch.save(compiled.state_dict(), tmp_path / "theirs.pth")
    torch.save({"model_ema": model.state_dict()}, tmp_path / "average.pth")
    for name in ("compiled", "theirs", "average"):
        for target in (nn.Linear(3, 3), torch.compile(nn.Linear(3, 3))):
            Checkpointer(target).load(str(tmp_path / f"{name}.pth"))
            assert torch.equal(target.weight, model.weight)
