"""Where a predictor's model comes from: a config, a name, or the folder of a saved model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from densedet import model_zoo
from densedet.engine.checkpoint import load_trained
from densedet.engine.config import build, load_config
from densedet.errors import ConfigError
from densedet.saved_model import SavedModel, is_saved_model, open_model
from densedet.saved_model.folder import is_config_of_saved_model
from densedet.saved_model.reading import build_augmentations, find_parts, from_zoo, require_config

Source = DictConfig | str | os.PathLike[str]


def load_source(config: Source, weights: str | os.PathLike[str] | None) -> SavedModel:
    """A trained model, in evaluation on the CPU, with what is needed to use it.

    Args:
        config, weights: as of `Predictor`.

    Raises:
        ConfigError: no such config, one without a model, an evaluation or a vocabulary, no weights
            of it, or weights for a saved model, which has its own.
        CheckpointError: the weights do not fit, or are not trained yet.
    """
    if isinstance(config, DictConfig):
        return _from_config(config, weights)
    if config in model_zoo.list_models():
        return from_zoo(model_zoo.get_model(os.fspath(config)), weights)
    if not is_saved_model(config):
        return _from_config(_load_config(os.fspath(config)), weights)
    if weights is not None:
        raise ConfigError(f"{config} is a saved model with its own weights: leave {weights} out")
    return open_model(config)


def with_overrides(name: str, overrides: Sequence[str]) -> Source:
    """What a tool is told: a config, a short name or a saved model, and changes of a config.

    Raises:
        ConfigError: no such config, changes that do not fit, or changes of a saved model.
    """
    if not overrides:
        return name
    if name in model_zoo.list_models():
        name = require_config(model_zoo.get_model(name))
    elif is_saved_model(name):
        raise ConfigError(f"{name}: a saved model takes no overrides: leave {overrides[0]} out")
    return _load_config(name, overrides)


def _load_config(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """As `load_config`, but not what stands in a folder that is to be checked as a whole."""
    if is_config_of_saved_model(name):
        raise ConfigError(f"{name} is of a saved model: give the folder, {Path(name).parent}")
    return load_config(name, list(overrides))


def _from_config(cfg: DictConfig, weights: str | os.PathLike[str] | None) -> SavedModel:
    parts = find_parts(cfg)
    model: Any = build(parts["model"], "model").eval()
    if not hasattr(model, "set_vocabulary"):
        raise ConfigError(f"{type(model).__name__} has no vocabulary to change")
    load_trained(model, OmegaConf.select(cfg, "train.output_dir", default=""), weights)
    place = "dataloader.test.mapper.augmentations"
    augmentations = build_augmentations(parts["augmentations"], place)
    return SavedModel(model, model.vocabulary, augmentations, cfg)
