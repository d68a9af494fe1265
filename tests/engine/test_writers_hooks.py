"""The writers, and the hook that seeds every step."""

import logging
import random
import sys
from types import SimpleNamespace

import numpy as np
import torch

from densedet.engine.hooks import SeedEveryStep
from densedet.engine.writers import build_writers, prepare_metrics


def _names(writers):
    for writer in writers:
        writer.close()
    return [type(writer).__name__ for writer in writers]


def test_a_missing_tensorboard_is_left_out(tmp_path, monkeypatch, caplog):
    everything = ["CommonMetricPrinter", "MetricsWriter", "EventsWriter"]
    assert _names(build_writers(str(tmp_path), 0, 5)) == everything
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with caplog.at_level(logging.INFO, logger="densedet"):
        assert _names(build_writers(str(tmp_path), 0, 5)) == everything[:2]
    assert "No TensorBoard events are written" in caplog.text


def test_records_that_come_again_are_dropped(tmp_path):
    file = tmp_path / "metrics.json"
    whole = ['{"iteration": 3, "loss": 1.0}', '{"iteration": 7}', '{"iteration": 5}', "[]"]
    file.write_text("\n".join(whole) + '\n{"iterat')
    prepare_metrics(file, 6)
    assert file.read_text() == f"{whole[0]}\n{whole[2]}\n"
    prepare_metrics(file, 0)
    assert not file.exists()
    assert (tmp_path / "metrics.old.json").read_text() == f"{whole[0]}\n{whole[2]}\n"


def _draw(seed, iteration):
    hook = SeedEveryStep(seed)
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_every_step_has_its_own_numbers_whatever_came_before():
    first = _draw(0, 4)
    torch.rand(100)
    assert _draw(0, 4) == first
    for other in (_draw(0, 5), _draw(1, 4)):
        assert not set(other) & set(first)
