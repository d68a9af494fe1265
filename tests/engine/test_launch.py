"""Devices and processes."""

import os

import pytest
import torch

from densedet.engine.launch import _run_child, launch, resolve_device
from densedet.engine.options import train_options
from densedet.engine.train import _prepare
from densedet.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that torch sees so many GPUs (nothing is run on them)."""

    def pretend(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return pretend


def test_devices(gpus, monkeypatch):
    gpus(0)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="train.device=cuda: process 0 needs GPU 0, torch sees 0"):
        resolve_device("cuda")
    with pytest.raises(ConfigError, match="train.device='gpu'"):
        resolve_device("gpu")
    for name in ("meta", "cpu:0", "cuda:-1", "cuda:x", "", 0):
        with pytest.raises(ConfigError, match=f"^--device={name!r}: choose auto, cpu, cuda,"):
            resolve_device(name, "--device")
    with pytest.raises(ConfigError, match=r"^device=cuda:3: .* GPU 3, .*; use device=cpu"):
        resolve_device("cuda:3", "device")
    gpus(2)
    assert resolve_device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="process 2 needs GPU 2, torch sees 2"):
        resolve_device("auto")


def test_one_process_is_this_one(gpus):
    gpus(0)
    seen = []
    launch(lambda *args: seen.append((os.getpid(), args)), (1, 2))
    assert seen == [(os.getpid(), (1, 2))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_gpus": 3}, "torch sees 2 CUDA devices; .*torchrun --nproc-per-node 3"),
        ({"num_gpus": 0}, "--num-gpus 0"),
        ({"num_gpus": 2, "device": "cpu"}, "train.device=cpu"),
        (
            {"num_gpus": 2, "device": "cuda:0"},
            "train.device=cuda:0: 2 processes would share this GPU; use train.device=cuda or auto",
        ),
        (
            {"num_machines": 2, "device": "cuda:1"},
            "train.device=cuda:1: 2 processes would share this GPU",
        ),
        ({"num_gpus": 1, "num_machines": 2, "machine_rank": 2}, "--machine-rank 2 does not fit"),
        ({"num_machines": 2}, "several machines need --dist-url"),
    ],
)
def test_what_cannot_be_launched(gpus, options, message):
    gpus(2)
    with pytest.raises(ConfigError, match=message):
        launch(pytest.fail, ("started",), **options)


def test_a_gpu_by_its_number_is_for_one_process(gpus, monkeypatch):
    gpus(2)
    current, seen = [], []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    launch(seen.append, ("alone",), device="cuda:1", num_gpus=1)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    launch(seen.append, ("torchrun",), device="cuda:1")
    assert (seen, current) == (["alone", "torchrun"], [torch.device("cuda", 1)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "init_process_group", pytest.fail)
    with pytest.raises(ConfigError, match="train.device=cuda:1: 2 processes would share this GPU"):
        launch(pytest.fail, ("started",), device="cuda:1")


@pytest.mark.parametrize(
    ("device", "current"), [("cuda:1", [torch.device("cuda", 1)]), ("cpu", [])]
)
def test_a_job_makes_its_gpu_the_current_one(gpus, monkeypatch, load_tiny, device, current):
    gpus(2)
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    cfg = load_tiny("plain", f"train.device={device}")
    assert _prepare(cfg, train_options(cfg)) == torch.device(device)
    assert calls == current


def test_wrong_input_in_a_child_is_one_line_and_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        _run_child(resolve_device, ("gpu",))
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: train.device='gpu'") and err.count("\n") == 1
    seen = []
    _run_child(seen.append, (3,))
    assert seen == [3]
    with pytest.raises(ZeroDivisionError):  # a defect keeps its traceback
        _run_child(divmod, (1, 0))


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would take real GPUs")
def test_the_parent_of_such_children_ends_with_code_2(gpus, capfd):
    gpus(2)  # the children see none and use gloo
    with pytest.raises(SystemExit) as caught:
        launch(resolve_device, ("gpu",), num_gpus=2)
    assert caught.value.code == 2
    err = capfd.readouterr().err
    assert "error: train.device='gpu'" in err and "Traceback" not in err
