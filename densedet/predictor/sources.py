"""Where a predictor's model comes from: a config, a name, or the folder of a saved model."""

import os
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from densedet import model_zoo
from densedet.engine.checkpoint import load_trained
from densedet.engine.config import build, load_config
from densedet.errors import ConfigError
from densedet.saved_model import SavedModel, is_saved_model, open_model

Source = DictConfig | str | os.PathLike[str]


def load_source(config: Source, weights: str | os.PathLike[str] | None) -> SavedModel:
    """A trained model, in evaluation on the CPU, with what is needed to use it.

    Args:
        config, weights: as of `Predictor`.

    Raises:
        ConfigError: no such config, a model without a vocabulary, no weights of it, or weights for
            a saved model, which has its own.
        CheckpointError: the weights do not fit, or are not trained yet.
    """
    if isinstance(config, DictConfig):
        return _from_config(config, weights)
    name = os.fspath(config)
    if is_saved_model(name) and weights is not None:
        raise ConfigError(f"{name} is a saved model with its own weights: leave {weights} out")
    if weights is None and (is_saved_model(name) or name in model_zoo.list_models()):
        return open_model(name)
    return _from_config(load_config(config_name(name)), weights)


def config_name(name: str) -> str:
    """The config that a short name of the model zoo stands for; any other name as it is."""
    if name not in model_zoo.list_models():
        return name
    return model_zoo.get_model(name).config or name


def with_overrides(name: str, overrides: Sequence[str]) -> Source:
    """What a tool is told: a config, a short name or a saved model, and changes of a config."""
    return load_config(config_name(name), list(overrides)) if overrides else name


def _from_config(cfg: DictConfig, weights: str | os.PathLike[str] | None) -> SavedModel:
    model: Any = build(cfg.model, "model").eval()
    if not hasattr(model, "set_vocabulary"):
        raise ConfigError(f"{type(model).__name__} has no vocabulary to change")
    load_trained(model, cfg.train.output_dir, weights)
    mapper = build(cfg.dataloader.test.mapper, "dataloader.test.mapper")
    return SavedModel(model, model.vocabulary, mapper.augmentations, cfg)
