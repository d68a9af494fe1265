"""Checkpoints: atomic, strict, and never executed."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from densedet.engine.checkpoint import Checkpointer, read_checkpoint
from densedet.errors import CheckpointError


class Runs:
    """Executes a command when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


class Broken:
    """A checkpointable whose state cannot be written."""

    def state_dict(self):
        return {"generator": (i for i in range(3))}


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))


def test_weights_come_back_from_pth_module_prefix_and_safetensors(tmp_path):
    source = _model()
    Checkpointer(source, str(tmp_path)).save("model_0000000", iteration=0)
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "ddp.pth")
    save_file(source.state_dict(), tmp_path / "plain.safetensors")

    for name in ("model_0000000.pth", "ddp.pth", "plain.safetensors"):
        target = _model()
        nn.init.zeros_(target[0].weight)
        Checkpointer(target).load(str(tmp_path / name))
        for key, value in source.state_dict().items():
            assert torch.equal(target.state_dict()[key], value)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"


def test_another_architecture_is_refused_whole(tmp_path):
    file = tmp_path / "other.pth"
    torch.save(
        {"0.weight": torch.ones(5, 4), "0.bias": torch.ones(3), "7.odd": torch.ones(1)}, file
    )
    model = _model()
    before = {k: v.clone() for k, v in model.state_dict().items()}

    with pytest.raises(CheckpointError) as caught:
        Checkpointer(model).load(str(file))

    message = str(caught.value)
    assert str(file) in message
    assert "2 missing: 1.weight, 1.bias;" in message
    assert "1 unexpected: 7.odd;" in message
    assert "1 of another shape: 0.weight (5, 4) for (3, 4)." in message
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())


def test_a_parameter_with_two_names_needs_one(tmp_path):
    model = _model()
    model.add_module("again", model[0])
    weights = {k: v + 1 for k, v in model.state_dict().items() if not k.startswith("again")}
    save_file(weights, tmp_path / "shared.safetensors")

    Checkpointer(model).load(str(tmp_path / "shared.safetensors"))

    assert torch.equal(model.again.weight, weights["0.weight"])


@pytest.mark.parametrize("style", ["pickle", "torch"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, style):
    trap, file = tmp_path / "trap", tmp_path / "evil.pth"
    data = {"model": {"0.weight": Runs(trap)}}
    if style == "pickle":
        file.write_bytes(pickle.dumps(data, protocol=2))
    else:
        torch.save(data, file)

    with pytest.raises(CheckpointError, match=r"evil\.pth: reading it would run code.*system"):
        read_checkpoint(str(file))
    assert not trap.exists()


def test_damaged_files_are_named(tmp_path):
    Checkpointer(_model(), str(tmp_path)).save("whole")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    (tmp_path / "cut.safetensors").write_bytes(b"\x99" * 20)
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "numbers.pth")

    for name in ("cut.pth", "empty.pth", "text.pth", "cut.safetensors", "list.pth", "numbers.pth"):
        with pytest.raises(CheckpointError, match=name):
            read_checkpoint(str(tmp_path / name))
    with pytest.raises(CheckpointError, match=r"absent\.pth does not exist"):
        read_checkpoint(str(tmp_path / "absent.pth"))


def test_a_released_checkpoint_has_to_be_converted(tmp_path):
    file = tmp_path / "released.pth"
    torch.save({"meta": {"CLASSES": ("wall",)}, "state_dict": {"a.weight": torch.ones(1)}}, file)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(str(file))
    message = str(caught.value)
    assert "released.pth is not a state dict" in message and "(meta, state_dict)" in message
    assert "tools/convert_checkpoint.py RELEASED.pth OUTPUT.safetensors --config-file" in message
    assert "\n" not in message
    torch.save({"lr": 0.1}, file)
    with pytest.raises(CheckpointError, match=r"not tensors \(lr\)$"):
        read_checkpoint(str(file))


def test_a_save_that_fails_leaves_the_former_file(tmp_path):
    model = _model()
    Checkpointer(model, str(tmp_path)).save("model_final", iteration=1)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    assert set(before) == {"model_final.pth", "last_checkpoint"}

    nn.init.zeros_(model[0].weight)
    broken = Checkpointer(model, str(tmp_path), broken=Broken())
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        broken.save("model_final", iteration=2)

    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_optimizer_state_of_another_training_is_refused(tmp_path):
    model = _model()
    Checkpointer(model, str(tmp_path), trainer=torch.optim.SGD(model.parameters(), 0.1)).save("m")
    other = torch.optim.SGD([model[0].weight], 0.1)

    with pytest.raises(CheckpointError, match=r"m\.pth: the state of 'trainer' belongs to another"):
        Checkpointer(model, str(tmp_path), trainer=other).load(str(tmp_path / "m.pth"))
