"""The text benchmark: shared beginnings against whole prompts, on one tower."""

import json
import math
from dataclasses import replace

import pytest

from densedet.benchmark.machine import Settings
from densedet.benchmark.text import TextJob, count_macs, run_text, text_rows
from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.guidance import PromptedTextEncoder

SETTINGS = Settings("cpu", threads=1, repeats=2, warmup=1)
JOB = TextJob(SETTINGS, "densedet-tiny")


def test_run(monkeypatch):
    runs = []
    encode = PromptedTextEncoder._encode

    def note(self, contexts):
        runs.append((self.share_prefix, tuple(contexts.shape[:2]), contexts.is_meta))
        return encode(self, contexts)

    monkeypatch.setattr(PromptedTextEncoder, "_encode", note)
    result = run_text(JOB)
    # counted, compared, then twice (without and with gradient) the warm-up and the repeats
    sides = [(True, (2, 8), False), (False, (2, 8), False)]
    assert runs == [(True, (1, 8), True), (False, (1, 8), True), *sides * (1 + 2 * 3)]
    assert result["prompts"] == 150 and result["batch"] == 2
    assert 0 <= result["largest_difference"] <= 1e-5 * result["largest_embedding"]
    for name, what in (("time_ratio", "forward"), ("training_time_ratio", "forward_backward")):
        assert 0 < result[name] < math.inf
        assert result[name] == pytest.approx(1 / result[what]["speedup"])
    assert result["macs_ratio"] == result["macs"]["ours"] / result["macs"]["reference"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    macs, forward, backward = text_rows(result)
    assert macs[1] == f"{result['macs']['ours'] / 1e9:.3g} G"
    assert forward[2] == f"{result['forward']['reference']['median_s'] / 2:.3g} s"
    assert backward[0] == "forward + backward, an image"


def test_multiply_adds_of_150_classes():
    """12 blocks of width 512 for 13 tokens; of 9 of them only once an image."""
    macs = count_macs(TextJob(SETTINGS))
    assert macs["ours"] <= 0.4 * macs["reference"]
    assert macs["reference"] / 1e9 == pytest.approx(74.1, abs=0.05)
    assert macs["ours"] / 1e9 == pytest.approx(23.3, abs=0.05)


def test_lower_precision():
    result = run_text(replace(JOB, settings=replace(SETTINGS, precision="bf16"), batch=1))
    assert 0 < result["largest_difference"] <= 0.1 * result["largest_embedding"]


def test_always_the_same_random_weights():
    first, second = (JOB.build().state_dict() for _ in range(2))
    assert all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"batch": 0}, ConfigError, "--batch 0 must be at least 1"),
        ({"model": "no-such-clip"}, ConfigError, "no CLIP architecture named 'no-such-clip'"),
        ({"vocabulary": "lvis_v1"}, VocabularyError, "class_tokens=5"),
        ({"vocabulary": "no_list"}, VocabularyError, "no_list"),
    ],
)
def test_wrong_jobs(change, error, message):
    with pytest.raises(error, match=message):
        replace(JOB, **change).build()


@pytest.mark.cuda
def test_on_cuda():
    result = run_text(replace(JOB, settings=replace(SETTINGS, device="cuda")))
    assert result["largest_difference"] <= 1e-3 * result["largest_embedding"]
