"""bf16 on a CPU without instructions for it is warned of, once, wherever it can be asked for."""

import logging
from types import SimpleNamespace

import pytest
import torch

from densedet.benchmark.machine import Settings
from densedet.engine import precision
from densedet.engine.trainer import check_precision
from densedet.predictor.shared import _check_precision

CPU = torch.device("cpu")
ASK = {
    "training": lambda name, dtype: check_precision(CPU, dtype),
    "predictor": lambda name, dtype: _check_precision(name, CPU),
    "benchmark": lambda name, dtype: Settings("cpu", name),
}


@pytest.fixture(autouse=True)
def _never_warned():
    precision._warn_of_bf16.cache_clear()
    yield
    precision._warn_of_bf16.cache_clear()


@pytest.fixture
def cpu(monkeypatch):
    """Puts other capabilities into the place of this machine's."""

    def have(**names):
        cpu = SimpleNamespace(get_capabilities=lambda: {"avx2": True, **names})
        monkeypatch.setattr(torch, "cpu", cpu)

    return have


@pytest.mark.parametrize("where", ASK)
def test_warned_once(cpu, caplog, where):
    cpu(avx512_bf16=False)
    for _ in range(3):
        ASK[where]("fp32", torch.float32)
    assert not caplog.records
    for _ in range(3):
        ASK[where]("bf16", torch.bfloat16)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "use fp32" in record.getMessage()


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_not_warned_of_where_there_are_instructions(cpu, caplog, name):
    cpu(**{name: True})
    precision.warn_if_slow(torch.bfloat16, CPU)
    assert not caplog.records


def test_not_warned_of_on_other_devices(cpu, caplog):
    cpu()
    precision.warn_if_slow(torch.bfloat16, torch.device("cuda"))
    assert not caplog.records


def test_what_torch_says_of_this_machine():
    """In one way or the other, of old and new versions of torch."""
    new = precision.has_bf16_instructions()
    assert isinstance(new, bool)
    if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported():
        assert new
