"""From a model and its config to a folder that has everything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from densedet import __version__
from densedet.clip import create_text_encoder
from densedet.clip.checkpoints import write_weights
from densedet.clip.factory import SHIPPED, weights_file
from densedet.engine.config import build
from densedet.errors import ConfigError, OutputError
from densedet.files import atomic_folder, writing
from densedet.model_zoo import ModelEntry
from densedet.saved_model.card import model_card
from densedet.saved_model.folder import (
    CARD,
    CONFIG,
    DIGEST,
    FORMAT,
    TEXT,
    VOCABULARY,
    WEIGHTS,
    config_digest,
    other_files,
)
from densedet.saved_model.plain import EMBEDDER, VOCABULARIES, find, trusted, without_weights
from densedet.saved_model.reading import described_parts
from densedet.vocabulary import Vocabulary
from densedet.weights import StateDict, file_digest


def save_model(
    source: Any,
    folder: str | os.PathLike[str],
    config: DictConfig | None = None,
    about: ModelEntry | None = None,
) -> Path:
    """Write a model as a folder that `load_model` and `densedet.Predictor` take.

    The folder has ``config.yaml``, ``model.safetensors``, ``vocabulary.json``, ``README.md`` and,
    if the words are embedded with weights from a file, ``text.safetensors``; other models, configs
    and checkpoints are not needed again. It appears whole or not at all.

    Args:
        source: a model with a vocabulary, a `Predictor` or a `SavedModel`.
        folder: is made; one that holds a saved model and nothing else is replaced. It is neither
            the working folder nor above it.
        config: that the model was built from; None takes ``source.config``.
        about: what is known of it, for the card.

    Returns:
        The folder.

    Raises:
        ConfigError: the config has something that has no plain form or that `load_model` would
            refuse, or the model has no vocabulary or weights other than float32.
        OutputError: the folder holds other files, or cannot be written, also where the disk is
            full.
    """
    target = Path(os.path.expanduser(folder))
    _check_free(target)
    model, config = _model_and_config(source, config)
    parts, state = _parts(model, config), _state(model)
    vocabulary: Vocabulary = source.vocabulary
    with _new_folder(target) as temporary:
        vocabulary.save(temporary / VOCABULARY)
        write_weights(temporary / WEIGHTS, state, {})
        _write_text_tower(find(parts, EMBEDDER), temporary / TEXT)
        trusted(parts, str(target / CONFIG), own_text=(temporary / TEXT).exists())
        digests = {file.name: file_digest(file) for file in sorted(temporary.iterdir())}
        content = {"format": FORMAT, "densedet": __version__, "files": digests, **parts}
        content[DIGEST] = config_digest(content)
        OmegaConf.save(OmegaConf.create(content), temporary / CONFIG)
        card = model_card(model, _trained(parts), vocabulary, about, digests)
        (temporary / CARD).write_text(card, encoding="utf-8")
    return target


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; choose another folder")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise OutputError(
            f"{folder} is the working folder or above it, and would be replaced as a whole: leave "
            "the folder first, or choose another one"
        )
    with writing(folder):
        others = other_files(folder) if folder.exists() else []
    if others:
        raise OutputError(
            f"{folder} holds {others[0]!r}, which would be lost; choose a folder that is empty or "
            "holds a saved model alone"
        )


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """As `atomic_folder`; what cannot be written is called by its name in the target."""
    with atomic_folder(target) as temporary:
        try:
            with writing(target):
                yield temporary
        except OutputError as error:
            raise OutputError(str(error).replace(str(temporary), str(target))) from error


def _model_and_config(source: Any, config: DictConfig | None) -> tuple[Any, DictConfig]:
    model = source if isinstance(source, nn.Module) else source.model
    config = getattr(source, "config", None) if config is None else config
    if not isinstance(config, DictConfig):
        raise ConfigError("give the config that the model was built from: save_model(..., config)")
    if not hasattr(model, "set_vocabulary"):
        raise ConfigError(f"{type(model).__name__} has no vocabulary to save")
    return model, config


def _parts(model: Any, config: DictConfig) -> dict[str, Any]:
    """Plain data that builds the model, whatever it was built from, without any other file."""
    parts = described_parts(config)
    parts["model"] = without_weights(parts["model"])
    # They belong to weights that are no longer named.
    parts["model"]["pixel_mean"], parts["model"]["pixel_std"] = _statistics(model)
    for call in find(parts, EMBEDDER):
        call.pop("cache_dir", None)
    return parts


def _statistics(model: Any) -> tuple[list[float], list[float]]:
    return model.pixel_mean.flatten().tolist(), model.pixel_std.flatten().tolist()


def _trained(parts: dict[str, Any]) -> Vocabulary:
    """The vocabulary of the training, which the config has and the model may have changed."""
    calls = [call for defined in VOCABULARIES for call in find(parts, defined)]
    trained = trusted(calls[0], "vocabulary")
    return trained if isinstance(trained, Vocabulary) else build(trained, "vocabulary")


def _state(model: nn.Module) -> StateDict:
    """Every parameter and buffer once, if a module holds it under two names; all of them fp32."""
    names = {id(value): name for name, value in model.state_dict(keep_vars=True).items()}
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ConfigError(
                f"{type(model).__name__} has {name} in {tensor.dtype}, and a saved model is built "
                "in torch.float32: convert it first, model.float()"
            )
    return {name: state[name] for name in names.values()}


def _write_text_tower(embedders: list[dict[str, Any]], path: Path) -> None:
    """Write the text tower that a file has, and let the embedders, changed here, name the copy."""
    origins = {(call["model"], call.get("pretrained")) for call in embedders}
    files = [
        origin for origin in origins if origin[1] != SHIPPED and weights_file(*origin) is not None
    ]
    if not files:
        return
    if len(origins) > 1:
        raise ConfigError(f"a saved model has one text tower, the config names {sorted(origins)}")
    write_weights(path, create_text_encoder(*files[0]).state_dict(), {"model": files[0][0]})
    for call in embedders:
        call["pretrained"] = TEXT
