"""The panoptic benchmark: both evaluators agree, and nothing is left behind."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi import evaluation

from densedet.benchmark import evaluate_panoptic
from densedet.benchmark.evaluate_panoptic import PanopticSizes, rows, run
from densedet.benchmark.machine import Settings
from densedet.errors import ConfigError

SETTINGS = Settings("cpu", threads=1, repeats=2, warmup=1)
SIZES = PanopticSizes(images=3, height=48, width=64, segments=5)


def test_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluate_panoptic.tempfile, "tempdir", str(tmp_path))
    before = list(DatasetCatalog), list(MetadataCatalog), evaluation.pq_compute_multi_core
    result = run(SETTINGS, SIZES)
    assert 0 <= result["largest_difference"] < 1e-9
    assert 20 < result["PQ"] < 95
    for line in (result, result["workers"]):
        lower, upper = line["speedup_quartiles"]
        assert 0 < lower <= line["speedup"] <= upper < math.inf
    assert json.loads(json.dumps(result, allow_nan=False)) == result

    first, second = rows(result)
    assert first[1] == f"{1e3 * result['ours']['median_s'] / 3:.2f} ms"
    assert second[2] == f"{1e3 * result['workers']['reference']['median_s'] / 3:.2f} ms"
    assert [first[3], second[3]] == [
        f"{line['speedup']:.2f}" for line in (result, result["workers"])
    ]
    assert before == (list(DatasetCatalog), list(MetadataCatalog), evaluation.pq_compute_multi_core)
    assert not list(tmp_path.iterdir()) and not multiprocessing.active_children()


def test_the_reference_scores_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the comparison would be with as many processes as there are cores."""
    started = []
    monkeypatch.setattr(evaluation.multiprocessing, "Pool", started.append)
    evaluated = []
    original = COCOPanopticEvaluator.evaluate
    monkeypatch.setattr(
        COCOPanopticEvaluator, "evaluate", lambda self: evaluated.append(1) or original(self)
    )
    run(SETTINGS, SIZES)
    # once for the figures, then the warm-up and the repeats
    assert len(evaluated) == 1 + 3 and started == []


@pytest.mark.parametrize("name", ["images", "height", "width", "segments"])
def test_wrong_sizes(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} 0 must be at least 1"):
        PanopticSizes(**{name: 0})
