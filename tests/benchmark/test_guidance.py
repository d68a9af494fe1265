"""The guidance benchmark: the reference runs the text tower for every image, ours does not."""

import json
import math
from dataclasses import replace

import pytest

from densedet.benchmark.guidance import GuidanceJob, guidance_rows, run_guidance
from densedet.benchmark.machine import Settings
from densedet.errors import ConfigError
from densedet.modeling.guidance import PromptedTextEncoder

CONFIGS = "projects/denseclip/configs/"
SETTINGS = Settings("cpu", threads=1, repeats=2, warmup=1)
JOB = GuidanceJob(SETTINGS, f"{CONFIGS}quickstart.py", image_size=64, images=2)


def test_run(monkeypatch):
    runs = []
    encode = PromptedTextEncoder._encode

    def count(self, contexts):
        runs.append(len(self.groups))
        return encode(self, contexts)

    monkeypatch.setattr(PromptedTextEncoder, "_encode", count)
    result = run_guidance(JOB)
    # once of ours; of the reference twice (the images) in the comparison, the warm-up, the repeats
    assert runs == [result["prompts"]] * (1 + 2 * 4)
    assert result["classes"] == 70 and result["prompts"] >= 70
    assert 0 <= result["largest_difference"] <= 1e-5 * result["largest_logit"]
    assert result["largest_logit"] > 0 and 0 < result["speedup"] < math.inf
    lower, upper = result["speedup_quartiles"]
    assert lower <= result["speedup"] <= upper
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    rate, seconds = guidance_rows(result)
    assert rate[1] == f"{2 / result['ours']['median_s']:.3g}"
    assert seconds[2] == f"{result['reference']['median_s'] / 2:.3g} s"


def test_lower_precision():
    job = replace(JOB, settings=replace(SETTINGS, precision="bf16"))
    result = run_guidance(job)
    assert result["largest_difference"] <= 1e-5 * result["largest_logit"]


def test_both_sides_have_the_same_random_weights():
    first, second = (JOB.build()[0].state_dict() for _ in range(2))
    assert all(bool((first[name] == second[name]).all()) for name in first)


@pytest.mark.parametrize("name", ["image_size", "images"])
def test_wrong_jobs(name):
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} 0 must be at least 1"):
        replace(JOB, **{name: 0})


@pytest.mark.parametrize(
    "name", [f"{CONFIGS}quickstart_clip.py", "projects/fvit/configs/quickstart.py"]
)
def test_models_without_prompted_text(name):
    with pytest.raises(ConfigError, match=f"{name} describes no Segmentor with prompted text"):
        replace(JOB, config_file=name).build()


@pytest.mark.cuda
def test_on_cuda():
    result = run_guidance(replace(JOB, settings=replace(SETTINGS, device="cuda")))
    assert result["largest_difference"] <= 1e-3 * result["largest_logit"]
