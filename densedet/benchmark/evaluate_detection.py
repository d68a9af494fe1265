"""``evaluate``: AP of densedet's evaluators against pycocotools and the lvis package.

Everything from annotations and detections in memory to the figures is timed, for boxes and for
masks, in one process.
"""

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable
from typing import Any

import torch
from pycocotools.cocoeval import COCOeval

from densedet import compat
from densedet.benchmark.detections import DetectionSizes, make_detections
from densedet.benchmark.machine import Settings
from densedet.benchmark.timing import SIDES, compare, row, time_in_turn
from densedet.errors import InstallationError
from densedet.evaluation import evaluate_coco_detections, evaluate_lvis_detections
from densedet.evaluation.ground_truth import coco_api

COCO_SIZES = DetectionSizes(images=200, objects=8, detections=100, classes=80)
LVIS_SIZES = DetectionSizes(images=200, objects=12, detections=300, classes=1203)

_TASKS = ("bbox", "segm")
_COCO_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")

Truth = dict[str, Any]
Detections = list[dict[str, Any]]
Evaluate = Callable[[Truth, Detections, str], dict[str, float]]


def run_coco(settings: Settings, sizes: DetectionSizes = COCO_SIZES) -> dict[str, Any]:
    """Time :func:`evaluate_coco_detections` against pycocotools, in turn.

    Returns:
        {"speedup" and the rest of :func:`compare`; "largest_difference": between the figures of
        both, in percent; "AP": of the synthetic detections, by task; "images", "objects",
        "detections", "classes"}.

    Raises:
        InstallationError: faster-coco-eval is missing: both sides would be pycocotools.
    """
    _need("faster_coco_eval", "pip install 'faster-coco-eval>=1.8'")
    compat.apply()
    return _run(settings, sizes, False, _our_coco, _pycocotools)


def run_lvis(settings: Settings, sizes: DetectionSizes = LVIS_SIZES) -> dict[str, Any]:
    """Time :func:`evaluate_lvis_detections` against the lvis package, in turn.

    Returns:
        As :func:`run_coco`.

    Raises:
        InstallationError: faster-coco-eval or lvis is missing.
    """
    _need("faster_coco_eval", "pip install 'faster-coco-eval>=1.8'")
    _need("lvis", "pip install --no-deps lvis")
    compat.apply()
    return _run(settings, sizes, True, _our_lvis, _lvis_package)


def detection_rows(name: str, result: dict[str, Any]) -> list[list[str]]:
    """The line of the table: what, ours, reference, ratio."""
    seconds = {side: result[side]["median_s"] for side in SIDES}
    what = f"{name}, {result['images']} images, boxes and masks"
    return [row(what, seconds, "{:.3g} s", f"{result['speedup']:.2f}")]


def _need(module: str, remedy: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InstallationError(f"this benchmark needs {module}: {remedy}")


def _run(
    settings: Settings, sizes: DetectionSizes, federated: bool, ours: Evaluate, reference: Evaluate
) -> dict[str, Any]:
    truth, detections = make_detections(sizes, federated)

    def evaluate(function: Evaluate) -> dict[str, dict[str, float]]:
        return {task: function(truth, detections, task) for task in _TASKS}

    found, expected = evaluate(ours), evaluate(reference)
    times = time_in_turn(
        {"ours": lambda: evaluate(ours), "reference": lambda: evaluate(reference)},
        torch.device("cpu"),
        settings.repeats,
        settings.warmup,
    )
    differences = [
        abs(_or_none(found[task][name]) - value)
        for task, figures in expected.items()
        for name, value in figures.items()
    ]
    return {
        **compare(times["ours"], times["reference"]),
        "largest_difference": max(differences),
        "AP": {task: _or_none(found[task]["AP"]) for task in _TASKS},
        **{name: getattr(sizes, name) for name in ("images", "objects", "detections", "classes")},
    }


def _or_none(value: float) -> float:
    """A figure as the references say it, for whom -100 % means that there is no ground truth."""
    return -100.0 if math.isnan(value) else value


def _our_coco(truth: Truth, detections: Detections, task: str) -> dict[str, float]:
    return evaluate_coco_detections(truth, detections, task, ())


def _our_lvis(truth: Truth, detections: Detections, task: str) -> dict[str, float]:
    return evaluate_lvis_detections(truth, detections, task, ())


def _copies(truth: Truth, detections: Detections, task: str) -> tuple[Truth, Detections]:
    """What the references may write into; for masks without boxes, as Detectron2 hands it over."""
    dropped = "bbox" if task == "segm" else ""
    return (
        {**truth, "annotations": [dict(a) for a in truth["annotations"]]},
        [{k: v for k, v in d.items() if k != dropped} for d in detections],
    )


def _pycocotools(truth: Truth, detections: Detections, task: str) -> dict[str, float]:
    data, results = _copies(truth, detections, task)
    with contextlib.redirect_stdout(io.StringIO()):
        api = coco_api({"info": {}, **data})
        evaluation = COCOeval(api, api.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(_COCO_FIGURES, (100 * evaluation.stats).tolist(), strict=False))


def _lvis_package(truth: Truth, detections: Detections, task: str) -> dict[str, float]:
    from lvis import LVIS, LVISEval, LVISResults

    class InMemory(LVIS):
        """Ground truth that need not be read from a file."""

        def _load_json(self, path: Truth) -> Truth:
            return path

    data, results = _copies(truth, detections, task)
    api = InMemory(data)
    with contextlib.redirect_stderr(io.StringIO()):  # a warning that the results are in memory
        evaluation = LVISEval(api, LVISResults(api, results), task)
    evaluation.run()
    return {k: 100 * float(v) for k, v in evaluation.get_results().items() if k.startswith("AP")}
