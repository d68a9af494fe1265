"""The converter as a user runs it, in both directions and with everything that must be refused."""

import os
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from safetensors.torch import load_file
from torch import nn

from densedet import model_zoo
from densedet.cli import exit_code
from densedet.clip import create_clip, create_visual, read_state_dict
from densedet.engine.checkpoint import Checkpointer

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "convert_checkpoint.py"
TINY = ("--model", "densedet-tiny")
CONFIGS = "projects/denseclip/configs"
DENSECLIP = ("--config-file", f"{CONFIGS}/quickstart.py")


def as_a_process(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The tool in this process and in the test's folder: ``run(*arguments)`` gives its code."""
    main = runpy.run_path(str(TOOL))["main"]
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: exit_code(lambda: main([str(a) for a in arguments]))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped weights in half precision."""
    state = create_clip("densedet-tiny", "shipped").state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path_factory.mktemp("released") / "in.pt"
    torch.save(half, path)
    return path


def test_there_and_back(tmp_path: Path, released: Path, run: Callable[..., int]) -> None:
    done = as_a_process(tmp_path, released, "ours.safetensors", *TINY, "--dtype", "fp32")
    assert done.returncode == 0 and "ours.safetensors: 104 tensors" in done.stdout, done.stderr
    assert load_file(tmp_path / "ours.safetensors")["visual.proj"].dtype == torch.float32
    assert run("ours.safetensors", "out.pt", *TINY, "--to", "released", "--flat") == 0
    expected = torch.load(released, weights_only=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_openais_weights_are_not_for_an_architecture_with_gelu(
    tmp_path: Path, released: Path, run: Callable[..., int]
) -> None:
    state = torch.load(released, weights_only=True)
    torch.save({**state, "input_resolution": torch.tensor(48)}, tmp_path / "in.pt")
    assert run("in.pt", "ours.safetensors", *TINY) == 2
    assert not (tmp_path / "ours.safetensors").exists()


def test_checkpoint_of_a_distillation(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    student = create_visual("densedet-tiny")
    model = nn.ModuleDict({"student": student, "teacher": create_visual("densedet-tiny")})
    torch.save({"model": model.state_dict(), "iteration": 3}, tmp_path / "model_final.pth")
    arguments = ("model_final.pth", "x.safetensors", *TINY, "--text-from", "shipped")
    assert run(*arguments) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and said[0].startswith("model_final.pth: a training checkpoint; this is")
    assert "without interpolation" in said[0] and "clipself.safetensors" in said[0]
    assert run("x.safetensors", "y.safetensors", *TINY) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    found = read_state_dict(tmp_path / "x.safetensors")
    shipped = create_clip("densedet-tiny", "shipped").state_dict()
    for name, tensor in student.tower.state_dict().items():
        assert torch.equal(found[f"visual.{name}"], tensor)
    assert torch.equal(found["text_projection"], shipped["text_projection"])


def test_denseclip_there_and_back(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = model_zoo.get_config(DENSECLIP[1])
    model = instantiate(cfg.model)
    Checkpointer(model, str(tmp_path)).save("model_final")
    done = as_a_process(tmp_path, "model_final.pth", "r.pth", *DENSECLIP, "--to", "released")
    assert done.returncode == 0 and "r.pth: 249 tensors" in done.stdout, done.stderr
    assert torch.load(tmp_path / "r.pth", weights_only=True)["meta"]["CLASSES"][0] == "red star"
    assert run("r.pth", "back.safetensors", *DENSECLIP) == 0
    assert "back.safetensors: 249 tensors" in capsys.readouterr().out
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    Checkpointer(model).load("back.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def evil(path: Path) -> None:
    class Payload:
        def __reduce__(self) -> object:
            return os.mkdir, (str(path.parent / "marker"),)

    path.write_bytes(pickle.dumps({"a": Payload()}, protocol=2))


def truncated(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def image_tower(path: Path) -> None:
    tower = create_visual("densedet-tiny").tower.state_dict()
    torch.save({f"visual.{name}": tensor for name, tensor in tower.items()}, path)


def other_denseclip(path: Path) -> None:
    state = {"decode_head.conv_seg.bias": torch.zeros(3), "gamma": torch.zeros(1)}
    torch.save({"state_dict": state}, path)


def nothing(_: Path) -> None:
    """Leave the folder empty."""


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (nothing, ["in.pt", "x.safetensors", *TINY], "in.pt: no such checkpoint file"),
        (truncated, ["in.pt", "x.safetensors", *TINY], "in.pt: truncated or not a checkpoint"),
        (evil, ["in.pt", "x.safetensors", *TINY], "in.pt: reading it would run code"),
        (image_tower, ["in.pt", "x.safetensors", *TINY], "in.pt: holds no text tower"),
        (
            image_tower,
            ["in.pt", "x.safetensors", "--model", "RN50", "--visual-only"],
            "in.pt for RN50: does not fit ModifiedResNet",
        ),
        (image_tower, ["in.pt", "x.safetensors", "--model", "EVA-B"], "no CLIP architecture"),
        (image_tower, ["in.pt", "x.pt", *TINY], "x.pt: weights of this format"),
        (image_tower, ["in.pt", "x.pth", *TINY, "--to", "released"], "written to a .pt file"),
        (
            image_tower,
            ["in.pt", "in.pt/x.safetensors", *TINY, "--visual-only"],
            "in.pt/x.safetensors cannot be written",
        ),
        (image_tower, ["in.pt", "x.safetensors", *TINY, "--flat"], "--flat is for --to released"),
        (
            image_tower,
            ["in.pt", "x.safetensors", *TINY, "--visual-only", "--text-from", "shipped"],
            "--visual-only leaves out the text tower",
        ),
        (image_tower, ["in.pt", "x.safetensors"], "one of the arguments --model --config-file is"),
        (image_tower, ["in.pt", "x.safetensors", *TINY, *DENSECLIP], "not allowed with argument"),
        (nothing, ["in.pt", "x.safetensors", *DENSECLIP], "in.pt: no such checkpoint file"),
        (evil, ["in.pt", "x.safetensors", *DENSECLIP], "in.pt: reading it would run code"),
        (image_tower, ["in.pt", "x.safetensors", *DENSECLIP], "in.pt: CLIP itself (convert it"),
        (other_denseclip, ["in.pt", "x.safetensors", *DENSECLIP], "in.pt: for 3 classes"),
        (other_denseclip, ["in.pt", "x.pth", *DENSECLIP], "x.pth: weights of this format"),
        (
            image_tower,
            ["in.pt", "x.pth", *DENSECLIP, "--to", "released"],
            "in.pt: does not fit Segmentor",
        ),
        (image_tower, ["in.pt", "x.pth", *DENSECLIP, "--dtype", "fp16"], "are for --model"),
        (
            image_tower,
            ["in.pt", "x.safetensors", "--config-file", f"{CONFIGS}/quickstart_clip.py"],
            "the config's Segmentor has no guidance",
        ),
        (image_tower, ["in.pt", "x.safetensors", "--config-file", "x.py"], "no config 'x.py'"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    tmp_path: Path,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    prepare: Callable[[Path], None],
    arguments: list[str],
    message: str,
) -> None:
    prepare(tmp_path / "in.pt")
    before = sorted(tmp_path.iterdir())
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ") and message in lines[0]
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_output_survives_a_refusal(tmp_path: Path) -> None:
    truncated(tmp_path / "in.pt")
    (tmp_path / "x.safetensors").write_text("mine")
    done = as_a_process(tmp_path, "in.pt", "x.safetensors", *TINY)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert (tmp_path / "x.safetensors").read_text() == "mine"
