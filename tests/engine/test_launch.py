"""Devices and processes."""

import os
import signal
import socket
import time

import pytest
import torch

from densedet.engine.launch import _run_child, launch, resolve_device
from densedet.engine.options import train_options
from densedet.engine.ranks import RankError
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
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", pytest.fail)
    with pytest.raises(ConfigError, match="train.device=cuda:1: 2 processes would share this GPU"):
        launch(pytest.fail, ("started",), device="cuda:1")


TORCHRUN = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"MASTER_ADDR": None},
            "WORLD_SIZE=2 is set and MASTER_ADDR is not: for one process unset",
        ),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "WORLD_SIZE=2 is set and MASTER_ADDR is not"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE=2 is set and MASTER_ADDR is not"),
        ({"MASTER_PORT": None}, "WORLD_SIZE=2 is set and MASTER_PORT is not"),
        ({"MASTER_PORT": "any"}, "MASTER_PORT='any' is no whole number"),
        ({"RANK": None}, "WORLD_SIZE=2 is set and RANK is not"),
        ({"LOCAL_RANK": None}, "WORLD_SIZE=2 is set and LOCAL_RANK is not"),
        ({"RANK": "first"}, "RANK='first' is no whole number"),
        ({"RANK": "-1"}, "RANK='-1' is no whole number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no whole number"),
        ({"RANK": "2"}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({"RANK": "1", "WORLD_SIZE": "1"}, "RANK=1 does not fit WORLD_SIZE=1"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 does not fit WORLD_SIZE=0"),
        ({"LOCAL_RANK": "x", "WORLD_SIZE": "1"}, "LOCAL_RANK='x' is no whole number"),
        ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE='x' is no whole number"),
    ],
)
def test_what_a_queue_leaves_behind_is_one_line(gpus, monkeypatch, change, message):
    gpus(1)
    monkeypatch.setattr(torch.distributed, "init_process_group", pytest.fail)
    for name, value in (TORCHRUN | change).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        launch(pytest.fail, ("started",), device="cuda" if "x" in change.values() else "cpu")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert "unset RANK, LOCAL_RANK and WORLD_SIZE" in str(caught.value)


@pytest.mark.parametrize(
    "left",
    [
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1"},
        {"RANK": "3"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"},
    ],
)
def test_one_process_may_find_some_of_it(monkeypatch, caplog, left):
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    seen = []
    launch(seen.append, ("done",), device="cpu")
    assert seen == ["done"]
    assert ("srun starts 4 tasks" in caplog.text) is ("SLURM_STEP_NUM_TASKS" in left)


def test_processes_that_do_not_meet_are_one_line(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in (TORCHRUN | {"MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError) as caught:
            launch(pytest.fail, ("started",), device="cpu", timeout=2)
    message = str(caught.value)
    assert message.startswith(f"the 2 processes do not meet at localhost:{port}: ")
    assert "\n" not in message


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


def _sleep(folder):
    """Job of a process that a signal is to end; the second dies at once."""
    rank = torch.distributed.get_rank()
    (folder / str(rank)).write_text(str(os.getpid()))
    if rank == 1:
        while not (folder / "0").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would take real GPUs")
def test_a_child_that_is_killed_ends_the_others(gpus, tmp_path, capfd):
    gpus(2)
    with pytest.raises(RankError) as caught:
        launch(_sleep, (tmp_path,), num_gpus=2)
    pids = [int((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    assert str(caught.value).startswith(f"rank 1 (process {pids[1]}) was killed by SIGKILL; ")
    assert caught.value.exit_code == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert capfd.readouterr().err.count("terminated by SIGTERM") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="the processes would take real GPUs")
def test_the_parent_of_such_children_ends_with_code_2(gpus, capfd):
    gpus(2)  # the children see none and use gloo
    with pytest.raises(SystemExit) as caught:
        launch(resolve_device, ("gpu",), num_gpus=2)
    assert caught.value.code == 2
    err = capfd.readouterr().err
    assert "error: train.device='gpu'" in err and "Traceback" not in err
