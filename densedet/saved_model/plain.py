"""Configs of models as plain data, and back.

A config that names any callable is code. What stands in the folder of a saved model may name the
parts of models alone, so that a folder from anywhere can be loaded: classes of the rooms below, and
a few functions. The builders of open_clip and timm are reached through densedet's own, which check
what they are asked for.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import open_clip
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import _convert_target_to_string, locate
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode
from omegaconf.errors import OmegaConfBaseException

from densedet.clip.factory import SHIPPED, resolve_architecture, weights_file
from densedet.engine.config import build
from densedet.errors import CheckpointError, ConfigError, DensedetError
from densedet.saved_model.folder import TEXT
from densedet.vocabulary import Vocabulary

TARGET = "_target_"
EMBEDDER = "densedet.clip.class_embeddings.VocabularyEmbedder"
VOCABULARIES = (
    "densedet.vocabulary.vocabulary.Vocabulary.from_dict",
    "densedet.vocabulary.vocabulary.Vocabulary.named",
)

_NAMES = re.compile(r"(densedet|detectron2|torch\.nn)(\.\w+)+")
# Of these modules every class; only where it is defined counts, not through which name it is found.
_ROOMS = (
    "densedet.modeling.",
    "detectron2.data.transforms.",
    "detectron2.layers.",
    "detectron2.modeling.",
    "torch.nn.modules.",
)
_WITHOUT = ("detectron2.modeling.mmdet_wrapper.",)  # builds what the registries of others hold
_SINGLE = frozenset(
    {
        EMBEDDER,
        "densedet.clip.factory.create_aligned_visual",
        "densedet.clip.factory.create_text_encoder",
        "densedet.clip.factory.create_visual",
        "densedet.data.transforms.ResizeShortestEdge",
        "densedet.data.transforms.ResizeToFit",
        "densedet.data.transforms.resize_longest_side",
        *VOCABULARIES,
    }
)
_FROM_DICT = "densedet.vocabulary.Vocabulary.from_dict"
# What has its weights in the state dict of the model: they need no file of their own.
_HOLDS_WEIGHTS = {
    "densedet.clip.factory.create_aligned_visual": None,
    "densedet.clip.factory.create_text_encoder": None,
    "densedet.clip.factory.create_visual": None,
    "densedet.modeling.backbone.timm_backbone.TimmBackbone": False,
}


_TOWERS = frozenset({EMBEDDER, *(name for name in _HOLDS_WEIGHTS if ".clip." in name)})


def to_plain(cfg: DictConfig | ListConfig, place: str) -> Any:
    """A part of a config as dicts, lists, strings and numbers, without interpolations.

    Classes and functions become their names, vocabularies from anywhere but the shipped class lists
    their content.

    Raises:
        ConfigError: an interpolation leads nowhere, or something has no plain form.
    """
    try:
        content = OmegaConf.to_container(
            cfg, resolve=True, structured_config_mode=SCMode.INSTANTIATE
        )
    except OmegaConfBaseException as error:
        raise ConfigError(f"{place}: {one_line(error)}") from error
    return _plain(content, place)


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, Vocabulary):
        return {TARGET: _FROM_DICT, "data": value.to_dict()}
    if isinstance(value, ShapeSpec):
        return {TARGET: "detectron2.layers.ShapeSpec", **dataclasses.asdict(value)}
    if isinstance(value, Mapping):
        return _plain_mapping(value, place)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}.{i}") for i, item in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ConfigError(
        f"{place}: a {type(value).__name__} cannot be written as plain data; describe it by a "
        "LazyCall of its class"
    )


def _plain_mapping(value: Mapping[Any, Any], place: str) -> Any:
    target = value.get(TARGET)
    if target is not None:
        name = target if isinstance(target, str) else _convert_target_to_string(target)
        target = _located(name, place)
        if _gives_vocabulary(target) and defined_as(target) not in _SINGLE:
            return _plain(build(OmegaConf.create({**value, TARGET: name}), place), place)
        value = {**value, TARGET: name}
    return {str(key): _plain(item, f"{place}.{key}") for key, item in value.items()}


def _gives_vocabulary(target: Callable[..., Any]) -> bool:
    annotations = getattr(target, "__annotations__", {})
    return annotations.get("return") in (Vocabulary, "Vocabulary")


def without_weights(node: Any) -> Any:
    """Plain data in which no part asks for weights that the state dict of the model has anyhow.

    Architectures have the names that they have without those weights.
    """
    if isinstance(node, list):
        return [without_weights(item) for item in node]
    if not isinstance(node, dict):
        return node
    changed = {key: without_weights(item) for key, item in node.items()}
    name = defined_as(_located(node[TARGET], TARGET)) if TARGET in node else ""
    if name in _TOWERS and isinstance(node.get("model"), str):  # which depends on the weights
        changed["model"] = resolve_architecture(node["model"], node.get("pretrained"))
    if name in _HOLDS_WEIGHTS and "pretrained" in node:
        changed["pretrained"] = _HOLDS_WEIGHTS[name]
    return changed


def find(node: Any, defined: str) -> list[dict[str, Any]]:
    """The calls in plain data of what is defined under this name, themselves and not copies."""
    if isinstance(node, list):
        return [call for item in node for call in find(item, defined)]
    if not isinstance(node, dict):
        return []
    calls = [call for item in node.values() for call in find(item, defined)]
    if TARGET in node and defined_as(_located(node[TARGET], TARGET)) == defined:
        calls.append(node)
    return calls


def trusted(node: Any, place: str, own_text: bool = False) -> Any:
    """Check plain data, whoever wrote it, and make it ready for `densedet.engine.config.build`.

    Args:
        node: what `described_parts` gives, or a part of it.
        place: file and key, for messages.
        own_text: whether the weights of a text tower come with it, in a file `TEXT`.

    Raises:
        ConfigError: it names something that is no part of a model, or a file.
    """
    if isinstance(node, list):
        return [trusted(item, f"{place}.{i}", own_text) for i, item in enumerate(node)]
    if isinstance(node, str):
        _check_text(node, place)
    if not isinstance(node, dict):
        return node
    if TARGET not in node:
        return {key: trusted(item, f"{place}.{key}", own_text) for key, item in node.items()}
    target = _allowed(node[TARGET], place)
    arguments = {key: item for key, item in node.items() if key != TARGET}
    if defined_as(target) == VOCABULARIES[0]:
        return make(lambda: Vocabulary.from_dict(**arguments), place)
    _check_weights(defined_as(target), arguments, place, own_text)
    arguments = {k: trusted(item, f"{place}.{k}", own_text) for k, item in arguments.items()}
    if target is ShapeSpec:
        return make(lambda: ShapeSpec(**arguments), place)
    return {TARGET: node[TARGET], **arguments}


def make(call: Callable[[], Any], place: str) -> Any:
    """What a call gives, whose arguments come from a config: it may raise anything about them.

    Raises:
        ConfigError: naming the place and what was raised.
        CheckpointError: from the call, as it is; it names a file.
    """
    try:
        return call()
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigError(one_line(error, place)) from error


def one_line(error: Exception, place: str = "") -> str:
    """The message of an error without line breaks; it begins with the place, once."""
    message = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, DensedetError | OmegaConfBaseException) and place:
        message = f"{type(error).__name__}: {message}"
    return message if not place or message.startswith(place) else f"{place}: {message}"


def _check_weights(defined: str, arguments: Mapping[str, Any], place: str, own_text: bool) -> None:
    pretrained = arguments.get("pretrained", _HOLDS_WEIGHTS.get(defined))
    if defined in _HOLDS_WEIGHTS and pretrained is not _HOLDS_WEIGHTS[defined]:
        raise ConfigError(
            f"{place}.pretrained: {pretrained!r} is not {_HOLDS_WEIGHTS[defined]}, though the "
            "weights of a saved model have this part too"
        )
    if ":" in str(arguments.get("model")):  # "local-dir:" and the like, of open_clip
        raise ConfigError(f"{place}.model: a saved model names an architecture, no folder")
    if defined != EMBEDDER:
        return
    if "cache_dir" in arguments:
        raise ConfigError(f"{place}.cache_dir: a saved model names no folders")
    _check_text_tower(arguments.get("model"), pretrained, place, own_text)


def _check_text_tower(model: Any, pretrained: Any, place: str, own_text: bool) -> None:
    """It is random, ships with densedet, is in the folder, or has a tag, where no file is meant."""
    if pretrained in (None, SHIPPED) or (pretrained == TEXT and own_text):
        return
    tags = open_clip.list_pretrained_tags_by_model(model) if isinstance(model, str) else []
    if pretrained not in tags:
        raise ConfigError(
            f"{place}.pretrained: {pretrained!r} is not a tag of open_clip for {model!r}; a saved "
            f"model names no other files than its own {TEXT}"
        )
    if weights_file(model, pretrained) is not None:
        raise ConfigError(
            f"{place}.pretrained: {pretrained!r} is meant as a tag of open_clip, but there is a "
            "file of that name in the working folder: rename it, or work in another folder"
        )


def _check_text(text: str, place: str) -> None:
    if re.search(r"[/\\~]|\$\{", text):
        raise ConfigError(
            f"{place}: {text!r} names a file or another place of a config; a saved model must do "
            "without"
        )


def _allowed(name: Any, place: str) -> Callable[..., Any]:
    target = _located(name, place)
    defined = defined_as(target)
    part = isinstance(target, type) and defined.startswith(_ROOMS)
    if defined not in _SINGLE and (not part or defined.startswith(_WITHOUT)):
        raise ConfigError(
            f"{place}: {name!r} ({defined}) is not a part of models that a saved model may name; "
            "allowed are classes of densedet.modeling, detectron2.modeling, detectron2.layers, "
            "detectron2.data.transforms and torch.nn, and densedet's functions for CLIP towers, "
            "vocabularies and resizing"
        )
    return target


def _located(name: Any, place: str) -> Callable[..., Any]:
    if not isinstance(name, str) or not _NAMES.fullmatch(name):
        raise ConfigError(
            f"{place}: {name!r} is not allowed in a saved model, only parts of densedet, "
            "detectron2 and torch.nn are"
        )
    try:
        target: Callable[..., Any] = locate(name)
    except Exception as error:  # locate raises what the module's import raises
        raise ConfigError(f"{place}: cannot import {name!r}: {one_line(error)}") from error
    if not callable(target):
        raise ConfigError(f"{place}: {name!r} is not a class or a function")
    return target


def defined_as(target: Callable[..., Any]) -> str:
    """Where a class or function is defined, whatever name it was found by."""
    return f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', '')}"
