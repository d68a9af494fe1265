"""The options of ``cfg.train``, checked before anything is built."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from densedet.errors import ConfigError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainOptions:
    """``cfg.train`` with its types; ``configs/common/train.py`` gives the values and explains them.

    Raises:
        ConfigError: a value outside its range.
    """

    output_dir: str
    init_checkpoint: str
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

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            names = ", ".join(PRECISIONS)
            raise ConfigError(f"train.precision={self.precision!r} is none of {names}")
        for name, least in (("max_iter", 1), ("log_period", 1), ("eval_period", 0), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"train.{name}={value!r} is not an integer of at least {least}")
        if not isinstance(self.sync_batch_norm, bool):
            raise ConfigError(f"train.sync_batch_norm={self.sync_batch_norm!r} is not a bool")
        if self.clip_grad is not None and not self.clip_grad.get("max_norm", 0) > 0:
            raise ConfigError("train.clip_grad needs max_norm > 0, or is null")
        if not self.checkpointer.get("period", 0) >= 1:
            raise ConfigError("train.checkpointer needs a period of at least 1")
        if not self.output_dir:
            raise ConfigError("train.output_dir is empty")

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
    names = [field.name for field in dataclasses.fields(TrainOptions)]
    unknown = [str(key) for key in cfg.train if key not in names]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"there is {', '.join(names)}"
        raise ConfigError(f"train.{unknown[0]} is unknown; {hint}")
    missing = [name for name in names if name not in cfg.train]
    if missing:
        raise ConfigError(f"train.{missing[0]} is missing; start from configs/common/train.py")
    try:
        values = {name: cfg.train[name] for name in names if name != "hooks"}
        values = {
            name: OmegaConf.to_container(value, resolve=True)
            if OmegaConf.is_config(value)
            else value
            for name, value in values.items()
        }
    except OmegaConfBaseException as error:
        raise ConfigError(f"train: {str(error).splitlines()[0]}") from error
    return TrainOptions(**values, hooks=cfg.train.hooks)
