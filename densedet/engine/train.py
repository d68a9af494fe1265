"""Training and evaluation of what a LazyConfig describes.

The config has ``model``, ``optimizer`` (its ``params.model`` is filled in here), ``lr_multiplier``
(fvcore's, or :class:`densedet.engine.schedule.PolyFloor`), ``train``
(:mod:`densedet.engine.options`) and ``dataloader`` with

- ``register``: a list of calls made first, e.g. the registration of data sets (optional);
- ``train``: :func:`densedet.data.loader.build_train_loader`, or any iterable of batches;
- ``test`` and ``evaluator``: what is evaluated, and how (optional for training);
- ``evaluators``: further data sets, by name (:mod:`densedet.engine.testing`).
"""

import copy
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.registry import _convert_target_to_string
from fvcore.common.param_scheduler import ParamScheduler
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from densedet import compat
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build, load_config
from densedet.engine.distributed import distribute, set_timeout, synchronise_batch_norm
from densedet.engine.hooks import (
    EvalHook,
    PeriodicCheckpointer,
    ResultWeights,
    SeedEveryStep,
    seed_everything,
)
from densedet.engine.launch import use_device
from densedet.engine.logs import log_end, setup_logging
from densedet.engine.options import TrainOptions, train_options
from densedet.engine.ranks import watching
from densedet.engine.schedule import PolyFloor
from densedet.engine.targets import calls
from densedet.engine.testing import (
    check_test_vocabularies,
    data_sets,
    do_test,
    look_at_test_data,
    register_data_sets,
)
from densedet.engine.trainer import Trainer, check_precision
from densedet.engine.vocabulary_check import check_vocabulary
from densedet.engine.writers import build_writers
from densedet.errors import ConfigError, DensedetError, Terminated
from densedet.files import write_text
from densedet.modeling.meta_arch.rcnn import warn_of_padding

logger = logging.getLogger(__name__)


def run(config_file: str, overrides: list[str], eval_only: bool, resume: bool) -> None:
    """Do the job of ``tools/lazyconfig_train_net.py`` in this process."""
    compat.apply()
    cfg = load_config(config_file, overrides)
    output_dir = train_options(cfg).output_dir
    prepare_output_dir(output_dir)
    setup_logging(output_dir)
    try:
        with watching(output_dir):
            (evaluate if eval_only else train)(cfg, resume=resume)
    except DensedetError as error:
        log_end(error)
        raise
    except Terminated as error:
        said = Terminated(str(error) or ("" if eval_only else _how_to_go_on(output_dir)))
        log_end(said)
        raise said from None


def train(cfg: DictConfig, resume: bool = False) -> dict[str, Any]:
    """Train, with checkpoints, evaluation and logs in ``cfg.train.output_dir``.

    Args:
        resume: Go on from the last checkpoint of the output folder, if there is one.

    Returns:
        The results of the last evaluation; {} without anything to evaluate and on other ranks than
        0.

    Raises:
        ConfigError: the config does not fit; before anything is built where that can be seen.
        DatasetError, ImageError: the training or what is evaluated after it has faulty data.
        CheckpointError: weights or state do not fit.
        NonFiniteLossError: a loss became infinite or NaN.
    """
    options = train_options(cfg)
    _require(cfg, "model", "optimizer", "lr_multiplier", "dataloader")
    _require(cfg.dataloader, "train", prefix="dataloader.")
    device = _prepare(cfg, options)
    check_precision(device, options.dtype)
    look_at_test_data(cfg)
    if comm.is_main_process():
        _save_config(cfg, options.output_dir)
    model = build(cfg.model, "model", nn.Module).to(device)
    if options.sync_batch_norm:
        model = synchronise_batch_norm(model, device, comm.get_world_size())
    warn_of_padding(model)
    check_vocabulary(cfg, model, "train")
    check_test_vocabularies(cfg, model)
    loader = build(cfg.dataloader.train, "dataloader.train", Iterable)
    trainer = Trainer(
        distribute(model, device, options.ddp),
        loader,
        _build_optimizer(cfg, model),
        device=device,
        dtype=options.dtype,
        clip_grad=options.clip_grad,
        grad_scaler=options.grad_scaler,
    )
    checkpointer = Checkpointer(model, options.output_dir, trainer=trainer)
    results: dict[str, Any] = {}
    own_hooks = _build_own_hooks(options)
    trainer.register_hooks(_build_hooks(cfg, options, own_hooks, model, checkpointer, results))
    start = _load_start(checkpointer, trainer, options.init_checkpoint, resume)
    if start >= options.max_iter:
        logger.info("All %d iterations are done already: only evaluating", options.max_iter)
        return do_test(cfg, model, own_hooks)
    _position(loader, start, options.seed)
    if comm.is_main_process():
        writers = build_writers(options.output_dir, start, options.max_iter)
        trainer.register_hooks([hooks.PeriodicWriter(writers, period=options.log_period)])
    trainer.train(start, options.max_iter)
    return results


def evaluate(cfg: DictConfig, weights: str | None = None, resume: bool = False) -> dict[str, Any]:
    """Evaluate a model, with strictly loaded weights.

    Args:
        weights: ``.pth`` or ``.safetensors``; None: ``cfg.train.init_checkpoint``; if that is
            empty, the model as it is built (a zero-shot model), with a warning.
        resume: Without ``weights``, take the last checkpoint of ``cfg.train.output_dir``.

    Returns:
        The evaluators' results, also written to ``{output_dir}/results.json``; {} on ranks other
        than 0.

    Raises:
        ConfigError: the config does not fit, or has nothing to evaluate.
        CheckpointError: the weights do not fit.
    """
    options = train_options(cfg)
    _require(cfg, "model", "dataloader")
    if not data_sets(cfg):
        _require(cfg.dataloader, "test", "evaluator", prefix="dataloader.")
    device = _prepare(cfg, options)
    model = build(cfg.model, "model", nn.Module).to(device)
    check_test_vocabularies(cfg, model)
    checkpointer = Checkpointer(model, options.output_dir)
    path = options.init_checkpoint if weights is None else weights
    if weights is None and resume:
        if not checkpointer.has_checkpoint():
            raise ConfigError(f"--resume: there is no checkpoint in {options.output_dir}")
        path = checkpointer.get_checkpoint_file()
    if not path:
        logger.warning("No checkpoint (train.init_checkpoint): evaluating the model as it is built")
    checkpointer.load(path or "", checkpointables=[])
    return do_test(cfg, model, _build_own_hooks(options))


def _how_to_go_on(folder: str) -> str:
    file = Path(folder, "last_checkpoint")
    if not file.is_file():
        return "there is no checkpoint yet"
    return f"--resume goes on from {file.read_text(encoding='utf-8').strip()}"


def prepare_output_dir(path: str) -> None:
    """Make the output folder.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.output_dir={path} cannot be made: {error}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"train.output_dir={path} cannot be written: check its permissions")


def _prepare(cfg: DictConfig, options: TrainOptions) -> torch.device:
    device = use_device(options.device)
    prepare_output_dir(options.output_dir)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    seed_everything(options.seed)
    set_timeout(options.seconds("evaluation"))
    register_data_sets(cfg)
    return device


def _save_config(cfg: DictConfig, folder: str) -> None:
    """Write ``config.yaml``, as Detectron2's ``LazyConfig.save`` has it, but whole and no pickle.

    Raises:
        ConfigError: an interpolation leads nowhere.
        OutputError: the file cannot be written.
    """
    try:
        OmegaConf.to_container(cfg, resolve=True)  # as OmegaConf.to_yaml does not
    except OmegaConfBaseException as error:
        text = "; ".join(line.strip() for line in str(error).splitlines()[:2])
        raise ConfigError(f"the config cannot be resolved: {text}") from error
    try:
        named = copy.deepcopy(cfg)
        for _, node in calls(named):
            if callable(node._target_):
                node._target_ = _convert_target_to_string(node._target_)
        text = OmegaConf.to_yaml(named)
    except (AttributeError, TypeError, ValueError) as error:
        logger.warning(
            "config.yaml is not written: YAML cannot hold what the config has: %s", error
        )
        return
    write_text(Path(folder) / "config.yaml", text)


def _require(cfg: DictConfig, *keys: str, prefix: str = "") -> None:
    missing = [f"{prefix}{key}" for key in keys if cfg.get(key) is None]
    for key in ("dataloader",) if not prefix else ():
        if not (missing or isinstance(cfg[key], DictConfig)):
            raise ConfigError(f"{key} is a {type(cfg[key]).__name__} and has to hold keys")
    if missing:
        raise ConfigError(f"the config has no {', '.join(missing)}")


def _build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    node = copy.deepcopy(cfg.optimizer)
    if not (isinstance(node, DictConfig) and isinstance(node.get("params"), DictConfig)):
        raise ConfigError(
            "optimizer.params must be L(get_parameters)(...) of densedet.engine.optim"
        )
    node.params.model = model
    return build(node, "optimizer", torch.optim.Optimizer)


class _LearningRate(hooks.LRScheduler):
    """Detectron2's hook; also for a :class:`PolyFloor`, which is no multiplier."""

    def __init__(self, schedule: Any) -> None:
        super().__init__(scheduler=schedule)
        self._schedule = schedule

    def before_train(self) -> None:
        """Bind the schedule to the optimizer, at the iteration where the training starts."""
        if isinstance(self._schedule, PolyFloor):
            last_iter = self.trainer.iter - 1
            self._scheduler = self._schedule.bind(self.trainer.optimizer, last_iter)
        super().before_train()


def _build_own_hooks(options: TrainOptions) -> list[HookBase]:
    return [
        build(hook, f"train.hooks.{number}", HookBase) for number, hook in enumerate(options.hooks)
    ]


def _build_hooks(
    cfg: DictConfig,
    options: TrainOptions,
    own_hooks: list[HookBase],
    model: nn.Module,
    checkpointer: Checkpointer,
    results: dict[str, Any],
) -> list[HookBase]:
    def test() -> dict[str, Any]:
        results.clear()
        results.update(do_test(cfg, model, own_hooks))
        # the curve has no point where a figure is undefined; NaN would be no JSON
        figures = flatten_results_dict(results)
        return {name: value for name, value in figures.items() if math.isfinite(value)}

    built: list[HookBase] = [
        hooks.IterationTimer(),
        SeedEveryStep(options.seed),
        _LearningRate(build(cfg.lr_multiplier, "lr_multiplier", (ParamScheduler, PolyFloor))),
        *own_hooks,
        PeriodicCheckpointer(
            checkpointer,
            results=[hook for hook in own_hooks if isinstance(hook, ResultWeights)],
            **options.checkpointer,
        ),
    ]
    return [*built, EvalHook(options.eval_period, test, options)]


def _load_start(
    checkpointer: Checkpointer, trainer: Trainer, weights: str | None, resume: bool
) -> int:
    """Load the weights to start from; return the first iteration."""
    if comm.is_main_process():
        checkpointer.clean()
    found = checkpointer.has_checkpoint()
    if resume and found:
        checkpointer.load(checkpointer.get_checkpoint_file())
        return int(trainer.iter) + 1
    if resume:
        logger.info("--resume: no checkpoint in %s, starting at 0", checkpointer.save_dir)
    elif found:
        logger.warning(
            "%s has checkpoints of an earlier training, which are going to be overwritten; to go "
            "on from the last one use --resume",
            checkpointer.save_dir,
        )
    checkpointer.load(weights or "", checkpointables=[])
    return 0


def _position(loader: Any, start: int, seed: int) -> None:
    """Tell the loader where the training starts and which seed it has."""
    if hasattr(loader, "start_iteration"):
        loader.start_iteration = start
    elif start:
        logger.warning("The loader has no start_iteration: the resumed training sees other data")
    if getattr(loader, "seed", 0) is None:
        loader.seed = seed
