"""How robust a model is to its words: one data set, evaluated with other words.

:mod:`densedet.engine.vocabulary_settings` has what is set,
:mod:`densedet.engine.vocabulary_curves` how it is shown.
"""

import copy
import itertools
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from omegaconf import DictConfig
from torch import Tensor, nn

from densedet.engine.checkpoint import load_trained
from densedet.engine.config import build
from densedet.engine.hooks import seed_everything
from densedet.engine.launch import use_device
from densedet.engine.options import train_options
from densedet.engine.testing import (
    RESULTS_FILE,
    check_test_vocabularies,
    data_sets,
    register_data_sets,
    text_origin,
)
from densedet.engine.vocabulary_curves import (
    choose_metrics,
    scalar_figures,
    write_curves,
    write_table,
)
from densedet.engine.vocabulary_settings import Setting, Studies, find_ensemble, plan
from densedet.errors import ConfigError
from densedet.evaluation.results import write_results
from densedet.modeling.pixel_scores import PixelScores, as_scores
from densedet.modeling.roi_heads import ScoreEnsemble
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """A setting, what the evaluator says there, and of that the figures of no single class."""

    setting: Setting
    results: Mapping[str, Any]
    figures: Mapping[str, float | None]

    @property
    def row(self) -> dict[str, Any]:
        """The line of a table."""
        return {**self.setting.values, **self.figures}


@dataclass(frozen=True)
class Outcome:
    """All points, the metrics to be drawn, and the model, which is as it was before."""

    points: list[Point]
    metrics: list[str]
    model: nn.Module
    seed: int


class WithoutDistractors(DatasetEvaluator):
    """Hands outputs to another evaluator as if the classes behind the first K were none.

    They have competed already, so what they won is lost: detections are dropped, pixels get no
    class (NaN in all scores), panoptic segments become void.

    Args:
        evaluator: knows K classes.
        num_classes: K.
    """

    def __init__(self, evaluator: DatasetEvaluator, num_classes: int) -> None:
        self.evaluator = evaluator
        self.num_classes = num_classes

    def reset(self) -> None:
        """Reset the other evaluator."""
        self.evaluator.reset()

    def process(self, inputs: Any, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Process outputs with "instances", "sem_seg" ``[C, H, W]`` or "panoptic_seg", C >= K."""
        self.evaluator.process(inputs, [self._without(output) for output in outputs])

    def evaluate(self) -> Any:
        """The results of the other evaluator."""
        return self.evaluator.evaluate()

    def _without(self, output: Mapping[str, Any]) -> dict[str, Any]:
        kept = dict(output)
        if "instances" in kept:
            instances = kept["instances"]
            kept["instances"] = instances[instances.pred_classes < self.num_classes]
        if "sem_seg" in kept:
            kept["sem_seg"] = _FirstClasses(as_scores(kept["sem_seg"]), self.num_classes)
        if "panoptic_seg" in kept:
            ids, segments = kept["panoptic_seg"]
            void = [s["id"] for s in segments if s["category_id"] >= self.num_classes]
            segments = [s for s in segments if s["category_id"] < self.num_classes]
            lost = torch.isin(ids, ids.new_tensor(void))
            kept["panoptic_seg"] = ids.masked_fill(lost, 0), segments
        return kept


class _FirstClasses(PixelScores):
    """The scores of the first K classes; NaN where another one is the best."""

    def __init__(self, source: PixelScores, count: int) -> None:
        self._first = source.classes < count
        super().__init__(source.classes[self._first], count, source.size, source.probabilities)
        self._source = source

    def block(self, rows: slice, columns: slice) -> Tensor:
        """As `PixelScores.block`."""
        block = self._source.block(rows, columns)
        lost = ~self._first[block.argmax(dim=-1, keepdim=True)]
        return block[..., self._first].masked_fill(lost, float("nan"))


def run_studies(
    cfg: DictConfig,
    studies: Studies,
    weights: str | os.PathLike[str] | None = None,
    metrics: Sequence[str] = (),
) -> Outcome:
    """Evaluate ``dataloader.test`` with ``dataloader.evaluator`` at every setting of the studies.

    Settings that are the same, like those that change nothing, are evaluated once. Files that the
    evaluator writes to ``train.output_dir`` are not kept.

    Args:
        weights: checkpoint; None takes ``model_final.pth`` of the config's output folder, or
            nothing for a model that has nothing to train.
        metrics: "task/figure" of what is to be drawn; none: see
            :func:`densedet.engine.vocabulary_curves.choose_metrics`.

    Raises:
        ConfigError: the config has nothing to evaluate, its model no vocabulary or no trained
            weights; see :func:`densedet.engine.vocabulary_settings.plan`; after the first
            evaluation, which names the figures: an unknown metric.
        CheckpointError: the weights do not fit.
        VocabularyError: the model cannot follow another vocabulary.
    """
    options = train_options(cfg)
    device = use_device(options.device)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    seed_everything(studies.seed)
    with tempfile.TemporaryDirectory() as scratch:
        part = _test_part(cfg, scratch)
        model = _build_model(part)
        load_trained(model, options.output_dir, weights)
        model.to(device)
        settings = plan(model, studies)
        (data_set,) = data_sets(part)
        loader, evaluator = data_set.part("test"), data_set.part("evaluator")
        ensemble = find_ensemble(model) if studies.exponents else None
        evaluations = _Evaluations(model, loader, evaluator, ensemble)
        points, drawn = _evaluate_all(evaluations, settings, metrics)
    return Outcome(points, drawn, model, studies.seed)


def _test_part(cfg: DictConfig, output_dir: str) -> DictConfig:
    """A copy that evaluates ``dataloader.test`` alone; its evaluator writes into a folder."""
    cfg = copy.deepcopy(cfg)
    dataloader = cfg.get("dataloader") or {}
    if "model" not in cfg or "test" not in dataloader or "evaluator" not in dataloader:
        raise ConfigError("the config needs model, dataloader.test and dataloader.evaluator")
    cfg.dataloader.pop("evaluators", None)
    cfg.train.output_dir = output_dir
    register_data_sets(cfg)
    return cfg


def _build_model(cfg: DictConfig) -> nn.Module:
    """The model, whose vocabulary can be changed and is that of the data set."""
    model: nn.Module = build(cfg.model, "model")
    if not hasattr(model, "set_vocabulary"):
        raise ConfigError(f"{type(model).__name__} has no vocabulary to change")
    check_test_vocabularies(cfg, model)
    return model


class _Evaluations:
    """What an evaluator says at each setting; the same settings are evaluated once.

    ``ensemble`` is None if no setting has exponents.
    """

    def __init__(
        self, model: Any, loader: Any, evaluator: DatasetEvaluator, ensemble: ScoreEnsemble | None
    ) -> None:
        self.model, self.loader, self.ensemble = model, loader, ensemble
        self.own: Vocabulary = model.vocabulary
        self.in_force = None if ensemble is None else (ensemble.seen, ensemble.unseen)
        self.evaluator = WithoutDistractors(evaluator, len(self.own))
        self.found: dict[Any, tuple[dict[str, Any], dict[str, float | None]]] = {}

    def point(self, setting: Setting) -> Point:
        exponents = setting.exponents or self.in_force
        key = setting.vocabulary.digest(), exponents
        if key not in self.found:
            self.apply(setting.vocabulary, exponents)
            results = inference_on_dataset(self.model, self.loader, self.evaluator)
            self.found[key] = results, scalar_figures(results, self.own.labels)
        return Point(setting, *self.found[key])

    def apply(self, vocabulary: Vocabulary, exponents: tuple[float, float] | None) -> None:
        self.model.set_vocabulary(vocabulary)
        if self.ensemble is not None and exponents is not None:
            self.ensemble.seen, self.ensemble.unseen = exponents

    def restore(self) -> None:
        self.apply(self.own, self.in_force)


def _evaluate_all(
    evaluations: _Evaluations, settings: Sequence[Setting], metrics: Sequence[str]
) -> tuple[list[Point], list[str]]:
    """The point of each setting, and the metrics to be drawn."""
    points: list[Point] = []
    drawn: list[str] = []
    try:
        for setting in settings:  # what the model refuses shows before the first long evaluation
            evaluations.model.set_vocabulary(setting.vocabulary)
        for setting in settings:
            points.append(evaluations.point(setting))
            drawn = drawn or choose_metrics(points[0].figures, metrics)
            _log(points[-1], drawn)
    finally:
        evaluations.restore()
    return points, drawn


def _log(point: Point, metrics: Sequence[str]) -> None:
    setting = ", ".join(f"{name} {value}" for name, value in point.setting.values.items())
    values = ", ".join(f"{name} {_text(point.figures.get(name))}" for name in metrics)
    logger.info("%s (%s): %s", point.setting.study, setting, values)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def write_studies(folder: Path, outcome: Outcome) -> None:
    """Write ``{study}.csv`` and ``{study}.png`` of each study, and ``results.json`` of all.

    A line of a table has the setting and all figures but those of single classes, in percent. In
    the JSON, a study is a list of points, each with its setting, the digest of the vocabulary and
    all that the evaluator said; and "provenance" is that of the model before
    (:func:`densedet.evaluation.results.write_results`), with the seed of the studies.

    Raises:
        OutputError: a file cannot be written.
    """
    content: dict[str, list[dict[str, Any]]] = {}
    for study, group in itertools.groupby(outcome.points, lambda point: point.setting.study):
        points = list(group)
        rows = [point.row for point in points]
        write_table(folder / f"{study}.csv", rows)
        write_curves(folder / f"{study}.png", rows, outcome.metrics)
        content[study] = [_record(point) for point in points]
    write_results(
        folder / RESULTS_FILE,
        content,
        vocabulary=outcome.model.vocabulary,  # type: ignore[arg-type]
        weights=outcome.model.state_dict(),
        text=text_origin(outcome.model),
        seed=outcome.seed,
    )


def _record(point: Point) -> dict[str, Any]:
    digest = point.setting.vocabulary.digest()
    return {**point.setting.values, "vocabulary": digest, "results": point.results}
