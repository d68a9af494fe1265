"""``predict``: where the time of `Predictor.predict` goes, of known words and a new image.

The reference is the same predictor as Detectron2 lets it be: every detection of the config (100 an
image) gets a mask, which is pasted by `paste_masks_in_image`, and those below the least score are
dropped from the result. The weights are random, so that the least score is not 0.05: it is chosen
so that some detections of the first image reach it.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.layers import paste_masks_in_image
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from numpy.typing import NDArray

from densedet.benchmark.defaults import PREDICT_CONFIG, PREDICT_KEPT
from densedet.benchmark.machine import Settings, positive
from densedet.benchmark.timing import SIDES, compare, row, time_in_turn
from densedet.clip import ClipVisual
from densedet.data.loader import seeded
from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build, load_config
from densedet.errors import ConfigError
from densedet.modeling import pasting
from densedet.modeling.detection_limits import replaced
from densedet.predictor import Prediction, Predictor
from densedet.visualization import draw_detections

PARTS = ("tower", "heads", "pasting", "other")
STAGES = (*PARTS, "drawing")


@dataclass(frozen=True)
class PredictJob:
    """What is predicted on what.

    Attributes:
        settings: repeats, threads.
        config_file: of a detector with masks; its weights are random.
        kept: detections of the first image that reach the least score.

    Raises:
        ConfigError: ``kept`` is not positive.
    """

    settings: Settings
    config_file: str = PREDICT_CONFIG
    kept: int = PREDICT_KEPT

    def __post_init__(self) -> None:
        positive(kept=self.kept)

    def build(self) -> Predictor:
        """The predictor, always with the same weights.

        Raises:
            ConfigError: the config describes no detector with masks.
        """
        config = load_config(self.config_file)
        with seeded(0):
            model = build(config.model, "model")
        heads = getattr(model, "roi_heads", None)
        if not isinstance(model, GeneralizedRCNN) or not getattr(heads, "mask_on", False):
            raise ConfigError(
                f"{self.config_file} describes no detector with masks: use one of projects/fvit"
            )
        with tempfile.TemporaryDirectory() as folder:
            Checkpointer(model, folder).save("weights")
            return Predictor(config, f"{folder}/weights.pth", device="cpu")


@dataclass
class _Clock:
    """Seconds of the stages of each call of one side."""

    calls: list[dict[str, float]] = field(default_factory=list)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is added to a stage of the latest call."""

        def measured(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.calls[-1][stage] += time.perf_counter() - start
            return result

        return measured

    def medians(self, last: int) -> dict[str, float]:
        """Of the latest calls."""
        calls = self.calls[-last:]
        return {
            stage: float(np.median([call[stage] for call in calls]))
            for stage in STAGES
            if stage != "drawing"
        }


def run_predict(job: PredictJob) -> dict[str, Any]:
    """Time both sides in turn, each on images that are new to the predictor.

    Returns:
        "ours", "reference" and "speedup" as of `compare`; for each side under "stages" the seconds
        of `STAGES` and under "shares" what part of ``predict`` each of them is (of drawing: in
        addition to it); "detections", "reference_detections" (those with a mask) and whether the
        "results_agree" on one image: boxes, scores and classes exactly, masks but for 1 pixel in
        100,000.
    """
    predictor = job.build()
    scene = make_scene(0, "val", 0).image
    scores = _instances(predictor.predict(scene, 0.0)).scores
    least = float(scores[min(job.kept, len(scores)) - 1])
    sides: dict[str, Callable[[NDArray[np.uint8]], tuple[Prediction, int]]] = {
        "ours": lambda image: _ours(predictor, image, least),
        "reference": lambda image: _reference(predictor, image, least),
    }
    (ours, count), (reference, all_count) = (sides[name](scene) for name in SIDES)
    clocks = {name: _Clock() for name in SIDES}
    images = _new_images(scene)
    actions = {name: _measured(sides[name], predictor, images, clocks[name]) for name in SIDES}
    settings = job.settings
    times = time_in_turn(actions, settings.torch_device, settings.repeats, settings.warmup)
    stages = {name: clocks[name].medians(settings.repeats) for name in SIDES}
    drawing = time_in_turn(
        {
            name: functools.partial(_draw, scene, found)
            for name, found in zip(SIDES, (ours, reference), strict=True)
        },
        settings.torch_device,
        settings.repeats,
        settings.warmup,
    )
    for name in SIDES:
        stages[name]["drawing"] = drawing[name].median
    return {
        **compare(times["ours"], times["reference"]),
        "stages": stages,
        "shares": {name: _shares(stages[name]) for name in SIDES},
        "detections": count,
        "reference_detections": all_count,
        "results_agree": _agree(ours, reference),
        "config_file": job.config_file,
    }


def predict_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    seconds = {side: result[side]["median_s"] for side in SIDES}
    rows = [row("predict", seconds, "{:.3g} s", f"{result['speedup']:.2f}")]
    for stage in STAGES:
        what = f"{stage}, share" if stage != "drawing" else "drawing, on top"
        shares = {side: result["shares"][side][stage] for side in SIDES}
        rows.append(row(what, shares, "{:.0%}"))
    return rows


def _ours(predictor: Predictor, image: NDArray[np.uint8], least: float) -> tuple[Prediction, int]:
    found = predictor.predict(image, least)
    return found, len(found.labels)


def _reference(
    predictor: Predictor, image: NDArray[np.uint8], least: float
) -> tuple[Prediction, int]:
    with replaced(pasting, "paste_masks", paste_masks_in_image):
        found = predictor.predict(image, 0.0)
    return found.above(least), len(found.labels)


def _measured(
    predict: Callable[[NDArray[np.uint8]], tuple[Prediction, int]],
    predictor: Predictor,
    images: Iterator[NDArray[np.uint8]],
    clock: _Clock,
) -> Callable[[], None]:
    """One call on a new image."""

    def call() -> None:
        image = next(images)
        clock.calls.append(dict.fromkeys((*PARTS, "model"), 0.0))
        with _watched(predictor, clock):
            start = time.perf_counter()
            found, _ = predict(image)
            seconds = time.perf_counter() - start
        stages = clock.calls[-1]
        stages["heads"] = stages["model"] - stages["tower"] - stages["pasting"]
        stages["other"] = seconds - stages["model"]

    return call


@contextmanager
def _watched(predictor: Predictor, clock: _Clock) -> Iterator[None]:
    """Time the tower, the pasting and the whole model meanwhile."""
    tower = next(m for m in predictor.model.modules() if isinstance(m, ClipVisual))
    model = predictor.model
    with ExitStack() as stack:
        for owner, name, stage in (
            (tower, "forward", "tower"),
            (pasting, "postprocess", "pasting"),
            (model, "forward", "model"),
        ):
            timed = clock.timed(stage, getattr(owner, name))
            stack.enter_context(replaced(owner, name, timed))
        yield


def _new_images(scene: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """The scene, each time with another pixel, so that nothing is known of it."""
    number = 0
    while True:
        number += 1
        image = scene.copy()
        image[0, 0] = number % 256, number // 256, 0
        yield image


def _instances(found: Prediction) -> Instances:
    assert found.instances is not None
    return found.instances


def _draw(image: NDArray[np.uint8], found: Prediction) -> None:
    draw_detections(image, _instances(found), found.vocabulary.labels)


def _shares(stages: dict[str, float]) -> dict[str, float]:
    predict = sum(stages[part] for part in PARTS)
    return {stage: seconds / predict for stage, seconds in stages.items()}


def _agree(ours: Prediction, reference: Prediction) -> bool:
    mine, theirs = _instances(ours), _instances(reference)
    return (
        len(mine) == len(theirs)
        and mine.scores.equal(theirs.scores)
        and mine.pred_boxes.tensor.equal(theirs.pred_boxes.tensor)
        and mine.pred_classes.equal(theirs.pred_classes)
        and float((mine.pred_masks != theirs.pred_masks).float().mean()) <= 1e-5
    )
