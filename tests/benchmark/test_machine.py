"""Settings, matrix peak and the memory of a child process."""

import os
import signal

import pytest
import torch

from densedet.benchmark.machine import MatrixProduct, Settings, describe, in_child, machine_line
from densedet.benchmark.machine import peak_memory as peak
from densedet.benchmark.timing import Timing
from densedet.errors import ConfigError

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, "--repeats 0 must be at least 1"),
        ({"threads": -1}, "--threads -1 must be at least 1"),
        ({"precision": "int8"}, "--precision int8 is none of fp32, bf16, fp16"),
        ({"device": "tpu"}, "--device tpu is none of auto, cpu, cuda"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda():
    with pytest.raises(ConfigError, match="--device cuda: torch sees no CUDA device"):
        Settings(device="cuda")
    assert Settings(device="auto").torch_device == CPU


def test_autocast_only_below_fp32():
    left = torch.ones(2, 2)
    with Settings("cpu", "fp32").autocast():
        assert (left @ left).dtype == torch.float32
    with Settings("cpu", "bf16").autocast():
        assert (left @ left).dtype == torch.bfloat16


def test_description():
    machine = describe(Settings("cpu", "bf16", compile=True))
    assert machine["gpu"] is None and machine["device"] == "cpu" and machine["cpu"]
    line = machine_line(machine)
    assert f"torch {torch.__version__}".split("+")[0] in line and "bf16 compiled" in line


def test_matrix_product():
    product = MatrixProduct(Settings("cpu", "bf16"), products=2)
    assert product.flops == 2 * 2 * 2048**3 and product.left.dtype == torch.bfloat16
    assert product.peak(Timing((4.0, 2.0))) == product.flops / 2


def _before_and_after(mebibytes: int) -> tuple[int, int]:
    before = peak(CPU)
    held = os.urandom(MIB) * mebibytes
    return before, peak(CPU) * bool(held)


def test_a_child_has_a_peak_of_its_own():
    """What this process holds does not count there, and what the child holds does."""
    held = os.urandom(MIB) * 1500
    before, after = in_child(_before_and_after, 400)
    assert peak(CPU) > len(held) > before
    assert 390 * MIB < after - before < 450 * MIB


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse() -> None:
    raise ConfigError("wrong")


def test_errors_of_a_child():
    with pytest.raises(ConfigError, match="was killed, probably for want of memory"):
        in_child(_die)
    with pytest.raises(ConfigError, match="^wrong$"):
        in_child(_refuse)
