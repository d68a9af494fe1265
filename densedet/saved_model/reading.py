"""From the folder of a saved model to the model."""

import os
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data import transforms as T
from omegaconf import DictConfig, OmegaConf
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
    is_saved_model,
    read_folder,
)
from densedet.saved_model.plain import EMBEDDER, find, to_plain, trusted, without_weights
from densedet.vocabulary import Vocabulary
from densedet.weights import file_digest, load_strictly, read_safetensors


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
            `densedet.model_zoo`.
        sha256: what the digest of ``model.safetensors`` must be; None takes any that fits the
            folder.

    Raises:
        ConfigError: there is no such model, or its config names what it must not.
        CheckpointError: a file is missing, changed, or does not fit, or is not trained yet.
    """
    compat.apply()
    name = os.fspath(source)
    if not is_saved_model(name) and name in model_zoo.list_models():
        return _from_zoo(model_zoo.get_model(name))
    folder = find_folder(source)
    content = read_folder(folder)
    if sha256 is not None and file_digest(folder / WEIGHTS) != sha256:
        raise CheckpointError(f"{folder / WEIGHTS} does not have the sha256 {sha256}")
    place = str(folder / CONFIG)
    described = {key: content.get(key) for key in ("model", "augmentations")}
    parts = trusted(described, place)
    if TEXT in content["files"]:
        for call in find(parts, EMBEDDER) + find(described, EMBEDDER):
            call["pretrained"] = str(folder / TEXT)
    model = _build(parts["model"], place)
    load_strictly(model, read_safetensors(folder / WEIGHTS)[0], folder / WEIGHTS)
    return SavedModel(
        model=model.eval(),
        vocabulary=Vocabulary.from_file(folder / VOCABULARY),
        augmentations=T.AugmentationList(_build(parts["augmentations"], place)),
        config=OmegaConf.create(described),
    )


def _from_zoo(entry: model_zoo.ModelEntry) -> SavedModel:
    if entry.config is None:
        raise ConfigError(
            f"{entry.name!r} is a CLIP alone: densedet.clip.create_clip({entry.clip!r}, "
            f"{entry.pretrained!r}) makes it"
        )
    weights = entry.weights_file()
    cfg = load_config(entry.config)
    parts = described_parts(cfg)
    if weights is not None:
        parts["model"] = without_weights(parts["model"])
    model = _build(trusted(parts["model"], entry.config), entry.config)
    load_trained(model, "", weights)
    augmentations = _build(trusted(parts["augmentations"], entry.config), entry.config)
    return SavedModel(model.eval(), model.vocabulary, T.AugmentationList(augmentations), cfg)


def described_parts(config: DictConfig) -> dict[str, Any]:
    """The plain data of "model" and "augmentations", of a config as users write it or as saved.

    Raises:
        ConfigError: it has no model, or no mapper of the evaluation.
    """
    augmentations = config.get("augmentations")
    if augmentations is None:
        augmentations = OmegaConf.select(config, "dataloader.test.mapper.augmentations")
    if config.get("model") is None or augmentations is None:
        raise ConfigError("the config needs 'model' and 'dataloader.test.mapper.augmentations'")
    return {
        "model": to_plain(config.model, "model"),
        "augmentations": to_plain(augmentations, "augmentations"),
    }


def _build(parts: Any, place: str) -> Any:
    """Instantiate; torch's random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        return build(parts, place)
