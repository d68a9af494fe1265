"""From the folder of a saved model to the model."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import transforms as T
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from densedet import compat, model_zoo
from densedet.engine.checkpoint import load_trained
from densedet.engine.config import build, load_config
from densedet.errors import CheckpointError, ConfigError
from densedet.saved_model.folder import (
    CONFIG,
    TEXT,
    VOCABULARY,
    WEIGHTS,
    find_folder,
    read_folder,
)
from densedet.saved_model.plain import (
    EMBEDDER,
    find,
    make,
    to_plain,
    trusted,
    without_weights,
)
from densedet.vocabulary import Vocabulary
from densedet.weights import (
    StateDict,
    file_digest,
    fit_strictly,
    load_strictly,
    read_safetensors,
)

_NO_VALUES = (
    "Cannot copy out of meta tensor",
    "Tensor.item() cannot be called on meta tensors",
    "Could not run 'aten::",
    "aten::",
)


@dataclass(frozen=True)
class SavedModel:
    """A model with all that is needed to use it and to save it again.

    Attributes:
        model: in evaluation, on the CPU; its ``vocabulary`` is that of the training.
        vocabulary: what it was asked for when it was saved.
        augmentations: of the evaluation, for pictures.
        config: "model" and "augmentations".
    """

    model: Any
    vocabulary: Vocabulary
    augmentations: T.AugmentationList
    config: DictConfig


def load_model(source: str | os.PathLike[str], sha256: str | None = None) -> nn.Module:
    """A saved model, as it was saved: its outputs are the same to the bit.

    Args:
        source, sha256: as for :func:`open_model`.

    Returns:
        The model in evaluation, on the CPU, with the vocabulary that it was saved with.

    Raises:
        ConfigError, CheckpointError: as from :func:`open_model`.
    """
    saved = open_model(source, sha256)
    if saved.vocabulary != saved.model.vocabulary:
        saved.model.set_vocabulary(saved.vocabulary)
    model: nn.Module = saved.model
    return model


def open_model(source: str | os.PathLike[str], sha256: str | None = None) -> SavedModel:
    """A saved model, or one of the model zoo, with its augmentations and its config.

    Nothing in the folder is run: weights are safetensors, the config names parts of models alone.

    Args:
        source: folder that `save_model` wrote; such a folder on the Hugging Face Hub,
            "hf-hub:owner/name" or "hf-hub:owner/name@revision"; or a short name of
            `densedet.model_zoo`, which is never a folder: that is "./name".
        sha256: what the digest of ``model.safetensors`` must be; None takes any that fits the
            folder.

    Raises:
        ConfigError: there is no such model, or its config names what it must not.
        CheckpointError: a file is missing, changed, or does not fit, or is not trained yet.
    """
    compat.apply()
    if source in model_zoo.list_models():
        return from_zoo(model_zoo.get_model(os.fspath(source)))
    folder = find_folder(source)
    content = read_folder(folder)
    if sha256 is not None and file_digest(folder / WEIGHTS) != sha256:
        raise CheckpointError(f"{folder / WEIGHTS} does not have the sha256 {sha256}")
    place = str(folder / CONFIG)
    described = {key: content.get(key) for key in ("model", "augmentations")}
    own_text = TEXT in content["files"]
    parts = trusted(described, place, own_text)
    if own_text:
        for call in find(parts, EMBEDDER) + find(described, EMBEDDER):
            call["pretrained"] = str(folder / TEXT)
    state = read_safetensors(folder / WEIGHTS, check=False)[0]  # its digest has been compared
    _check_fit(parts["model"], f"{place}.model", state, folder / WEIGHTS)
    model = _build_model(parts["model"], f"{place}.model")
    load_strictly(model, state, folder / WEIGHTS)
    return SavedModel(
        model=model.eval(),
        vocabulary=Vocabulary.from_file(folder / VOCABULARY),
        augmentations=build_augmentations(parts["augmentations"], f"{place}.augmentations"),
        config=OmegaConf.create(described),
    )


def from_zoo(
    entry: model_zoo.ModelEntry, weights: str | os.PathLike[str] | None = None
) -> SavedModel:
    """A model of the model zoo; the weights need no file of a CLIP beside them.

    Args:
        entry: of the model.
        weights: checkpoint; None takes that of the entry.

    Raises:
        ConfigError: it is a CLIP alone, or there are no such weights.
        CheckpointError: the weights do not fit, or are not trained yet.
    """
    config = require_config(entry)
    weights = entry.weights_file() if weights is None else weights
    cfg = load_config(config)
    parts, place = described_parts(cfg), config
    described: Any = cfg.model
    if weights is not None:
        described = trusted(without_weights(parts["model"]), f"{place}.model")
    model = _build_model(described, f"{place}.model")
    load_trained(model, "", weights)
    place = f"{place}.augmentations"
    augmentations = build_augmentations(trusted(parts["augmentations"], place), place)
    return SavedModel(model.eval(), model.vocabulary, augmentations, cfg)


def require_config(entry: model_zoo.ModelEntry) -> str:
    """The config of a model of the zoo.

    Raises:
        ConfigError: it is a CLIP alone.
    """
    if entry.config is None:
        raise ConfigError(
            f"{entry.name!r} is a CLIP alone: densedet.clip.create_clip({entry.clip!r}, "
            f"{entry.pretrained!r}) makes it"
        )
    return entry.config


def described_parts(config: DictConfig) -> dict[str, Any]:
    """The plain data of "model" and "augmentations", of a config as users write it or as saved.

    Raises:
        ConfigError: as of `find_parts`.
    """
    return {name: to_plain(part, name) for name, part in find_parts(config).items()}


def find_parts(config: DictConfig) -> dict[str, Any]:
    """The parts "model" and "augmentations" of a config as users write it or as saved.

    Raises:
        ConfigError: it has no model, or no mapper of the evaluation.
    """
    augmentations = config.get("augmentations")
    if augmentations is None:
        augmentations = OmegaConf.select(config, "dataloader.test.mapper.augmentations")
    if config.get("model") is None or augmentations is None:
        raise ConfigError("the config needs 'model' and 'dataloader.test.mapper.augmentations'")
    return {"model": config.model, "augmentations": augmentations}


def _build(parts: Any, place: str) -> Any:
    """Instantiate; torch's random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        return make(lambda: build(parts, place), place)


def _build_model(part: Any, place: str) -> Any:
    model = _build(part, place)
    if not isinstance(model, nn.Module) or not hasattr(model, "set_vocabulary"):
        raise ConfigError(f"{place}: {type(model).__name__} is not a model with a vocabulary")
    return model


def build_augmentations(parts: Any, place: str) -> T.AugmentationList:
    """The augmentations of the evaluation.

    Raises:
        ConfigError: it is no list, or has something else in it.
    """
    augmentations = _build(parts, place)
    if not isinstance(augmentations, list | ListConfig):
        raise ConfigError(f"{place}: {type(augmentations).__name__} is not a list of augmentations")
    for index, found in enumerate(augmentations):
        if not isinstance(found, T.Augmentation | T.Transform):
            raise ConfigError(f"{place}.{index}: {type(found).__name__} is not an augmentation")
    return T.AugmentationList(augmentations)


def _needs_values(error: BaseException | None) -> bool:
    """Whether torch raised this, or what caused it, since tensors of "meta" have no values.

    The type and the beginning of the message are torch's: a config has no words there.
    """
    while error is not None:
        if isinstance(error, RuntimeError) and str(error).startswith(_NO_VALUES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _check_fit(part: Any, place: str, state: StateDict, path: Path) -> None:
    """Compare names, shapes and dtypes with those of the model before it takes any memory.

    A config may name a model of any size. What cannot be built without memory is compared when it
    has been built.
    """
    try:
        with torch.device("meta"):
            model = _build_model(part, place)
    except ConfigError as error:
        if _needs_values(error):
            return
        raise
    fit_strictly(model, state, path)
    own = model.state_dict()
    for name, tensor in state.items():
        if tensor.dtype != own[name].dtype:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}, and {type(model).__name__} has "
                f"{own[name].dtype}; save the model again"
            )
