"""The options of ``cfg.train``, checked before anything is built."""

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from densedet.engine.precision import PRECISION_NAMES
from densedet.errors import ConfigError

PRECISIONS = dict(zip(PRECISION_NAMES, (torch.float32, torch.bfloat16, torch.float16), strict=True))

# whether a value fits, and what the message says otherwise
_Check: TypeAlias = tuple[Callable[[Any], bool], str]


def _require(name: str, value: Any, check: _Check) -> None:
    fits, remedy = check
    if not fits(value):
        raise ConfigError(f"train.{name}={value!r:.200}: {remedy}")


def _integer(least: int) -> _Check:
    return lambda value: type(value) is int and value >= least, f"give an integer >= {least}"


def _instance(types: type | tuple[type, ...], remedy: str) -> _Check:
    return lambda value: isinstance(value, types), remedy


def _number(fits: Callable[[float], bool], remedy: str) -> _Check:
    return lambda value: type(value) in (int, float) and fits(value), remedy


def _or_null(check: _Check) -> _Check:
    fits, remedy = check
    return lambda value: value is None or fits(value), f"{remedy}, or null"


_ARGUMENTS = _instance(Mapping, "give a dict of arguments")
_BOOL = _instance(bool, "give true or false")
_PATH = (str, os.PathLike)
_CHECKS: Mapping[str, _Check] = {
    "output_dir": (lambda value: isinstance(value, _PATH) and bool(value), "give a folder"),
    "init_checkpoint": _or_null(_instance(_PATH, "give a file")),
    "max_iter": _integer(1),
    "precision": (lambda value: value in list(PRECISIONS), f"choose {', '.join(PRECISIONS)}"),
    "grad_scaler": _or_null(_ARGUMENTS),
    "clip_grad": _or_null(_instance(Mapping, "give a dict like {max_norm: 1.0, norm_type: 2.0}")),
    "ddp": _ARGUMENTS,
    "sync_batch_norm": _BOOL,
    "checkpointer": _instance(Mapping, "give a dict like {period: 5000, max_to_keep: 5}"),
    "eval_period": _integer(0),
    "log_period": _integer(1),
    "device": _instance(str, "choose auto, cpu, cuda, cuda:N or mps"),
    "seed": _integer(0),
    "num_threads": _or_null(_integer(1)),
    "hooks": (
        lambda value: isinstance(value, Sequence) and not isinstance(value, str),
        "give a list of L(...)(...)",
    ),
    "timeout": _or_null(_instance(Mapping, "give a dict like {steps: 600, evaluation: 1800}")),
}
_SECONDS = _number(lambda value: 0 < value < math.inf, "give seconds > 0")
_TIMEOUT = {"steps": 600.0, "evaluation": 1800.0}
# the arguments of Detectron2's PeriodicCheckpointer and of torch's clip_grad_norm_, behind the one
# that is needed
_PARTS: Mapping[str, tuple[str | None, Mapping[str, _Check]]] = {
    "timeout": (None, {"steps": _SECONDS, "evaluation": _SECONDS}),
    "checkpointer": (
        "period",
        {
            "period": _number(lambda value: 1 <= value < math.inf, "give a number >= 1"),
            "max_to_keep": _or_null(_integer(1)),
            "max_iter": _or_null(_integer(1)),
            "file_prefix": _instance(str, "give the start of the file names"),
        },
    ),
    "clip_grad": (
        "max_norm",
        {
            "max_norm": _number(lambda value: value > 0, "give a number > 0"),
            "norm_type": (
                lambda value: value == "inf" or type(value) in (int, float),
                "give a number or inf",
            ),
            "error_if_nonfinite": _BOOL,
            "foreach": _or_null(_BOOL),
        },
    ),
}


@dataclass(frozen=True)
class TrainOptions:
    """``cfg.train`` with its types; ``configs/common/train.py`` gives the values and explains them.

    Raises:
        ConfigError: a value outside its range.
    """

    output_dir: str
    init_checkpoint: str | None
    max_iter: int
    precision: str
    grad_scaler: Mapping[str, Any]
    clip_grad: Mapping[str, Any] | None
    ddp: Mapping[str, Any]
    sync_batch_norm: bool
    checkpointer: Mapping[str, Any]
    eval_period: int
    log_period: int
    device: str
    seed: int
    num_threads: int | None
    hooks: list[Any]
    # seconds that a process waits for the others; configs saved by older versions have none
    timeout: Mapping[str, float] | None = field(default_factory=lambda: dict(_TIMEOUT))

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            _require(name, getattr(self, name), check)
        for name, (needed, checks) in _PARTS.items():
            part = getattr(self, name)
            for key in () if part is None else (*filter(None, [needed]), *part):
                if key not in checks:
                    raise ConfigError(
                        f"train.{name}.{key} is unknown; there is {', '.join(checks)}"
                    )
                _require(f"{name}.{key}", part.get(key), checks[key])

    def seconds(self, part: str) -> float:
        """How long a process waits for the others in the "steps" or in the "evaluation"."""
        return float({**_TIMEOUT, **(self.timeout or {})}[part])

    @property
    def dtype(self) -> torch.dtype:
        """The type that autocast computes in; float32 stands for no autocast."""
        return PRECISIONS[self.precision]


def train_options(cfg: DictConfig) -> TrainOptions:
    """Read ``cfg.train``.

    Raises:
        ConfigError: ``train`` or one of its keys is missing, unknown or out of range.
    """
    if "train" not in cfg:
        raise ConfigError("the config has no 'train'; start from configs/common/train.py")
    if not isinstance(cfg.train, DictConfig):
        raise ConfigError("train must be a dict of options; see configs/common/train.py")
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    unknown = [str(key) for key in cfg.train if key not in names]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"there is {', '.join(names)}"
        raise ConfigError(f"train.{unknown[0]} is unknown; {hint}")
    missing = [name for name in names if name not in cfg.train and name != "timeout"]
    if missing:
        raise ConfigError(f"train.{missing[0]} is missing; start from configs/common/train.py")
    try:
        values = {name: cfg.train[name] for name in names if name in cfg.train}
        values = {
            name: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value) and name != "hooks"
            else value
            for name, value in values.items()
        }
    except OmegaConfBaseException as error:
        raise ConfigError(f"train: {str(error).splitlines()[0]}") from error
    return TrainOptions(**values)
