"""What the classes and functions of a LazyConfig take: their arguments, and of which kind."""

import collections.abc
import difflib
import inspect
import os
import pathlib
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from densedet.engine.options import TrainOptions
from densedet.errors import ConfigError

# what a value may be: the text, or what Hydra's grammar reads it as
KINDS: dict[Any, str] = {
    **dict.fromkeys((str, os.PathLike, pathlib.Path), "text"),
    **dict.fromkeys((int, float, complex), "number"),
    bool: "truth",
    type(None): "nothing",
    None: "nothing",
}
_UNKNOWN = frozenset({"anything"})
_OF_TEXT = frozenset({"text", "list", "dict"})  # of what is text now, without an annotation


def calls(cfg: Any, name: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Yield every node with a ``_target_`` below ``cfg``, innermost last, with its place."""
    if isinstance(cfg, DictConfig) and not (cfg._is_none() or cfg._is_missing()):
        if "_target_" in cfg:
            yield name or "config", cfg
        children: Iterable[Any] = list(cfg)
    elif isinstance(cfg, ListConfig) and not (cfg._is_none() or cfg._is_missing()):
        children = range(len(cfg))
    else:
        return
    for key in children:
        child = cfg._get_node(key)
        if isinstance(child, (DictConfig, ListConfig)) and not child._is_interpolation():
            yield from calls(child, f"{name}.{key}" if name else str(key))


def find_target(node: DictConfig, place: str) -> Callable[..., Any]:
    """The class or function of a node; raises ConfigError where it cannot be imported."""
    name = node._target_
    if not isinstance(name, str):
        return name
    try:
        return locate(name)
    except Exception as error:  # locate raises what the module's import raises
        reason = " ".join(str(error).split())
        if "ModuleNotFoundError" in reason:
            reason += " If it is yours, put its folder on PYTHONPATH."
        raise ConfigError(f"{place}: cannot import {name!r}: {reason}") from error


def find_signature(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """The parameters of a target; None of what is built in C, without a signature."""
    try:
        return dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):
        return None


def keyword_arguments(target: Callable[..., Any]) -> list[str] | None:
    """Return the keyword arguments of ``target``; None if it takes any."""
    found = find_signature(target)
    if found is None or any(p.kind is p.VAR_KEYWORD for p in found.values()):
        return None
    return [name for name, p in found.items() if p.kind is not p.VAR_POSITIONAL]


CONTAINER = object()
"""What :func:`plain_value` says of a list, a dict, and of what cannot be looked up."""


def plain_value(node: DictConfig, key: str) -> Any:
    """The text, number, truth value or None under a key, also where it refers to one."""
    child: Any = node._get_node(key)
    try:
        if child._is_interpolation():
            child = child._dereference_node()
    except OmegaConfBaseException:
        return CONTAINER
    if child is None or child._is_missing() or OmegaConf.is_config(child):
        none = OmegaConf.is_config(child) and child._is_none()
        return None if none else CONTAINER
    return child._value()


def title(target: Callable[..., Any]) -> str:
    """How a message names a target."""
    return getattr(target, "__qualname__", str(target))


def hint(word: str, known: Iterable[str]) -> str:
    """Close matches of a word, or else all that there is, for the end of a message."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; there is {', '.join(names)}" if names else ""


def expected(cfg: DictConfig, key: str) -> frozenset[str]:
    """What may stand under a key: some of text, number, truth, nothing, list, dict, anything."""
    path, _, name = key.rpartition(".")
    try:
        parent = OmegaConf.select(cfg, path) if path else cfg
        node = parent._get_node(name) if isinstance(parent, DictConfig) else None
    except OmegaConfBaseException:
        return _UNKNOWN
    if not isinstance(parent, DictConfig):
        return _by_value(parent, name)
    annotations = list(_annotations(cfg, parent, path, name, node))
    if annotations:
        return frozenset().union(*annotations)
    return _by_value(parent, name)


def _annotations(
    cfg: DictConfig, parent: DictConfig, path: str, name: str, node: Any
) -> Iterator[frozenset[str]]:
    if path == "train":
        yield from kinds(TrainOptions, name)
    elif "_target_" in parent:
        yield from kinds(parent._target_, name)
    elif node is not None:
        for _, call in calls(cfg):
            for key in call:
                child: Any = call._get_node(key)
                if child._is_interpolation() and _refers_to(child, node):
                    yield from kinds(call._target_, str(key))


def _refers_to(child: Any, node: Any) -> bool:
    try:
        return child._dereference_node() is node
    except OmegaConfBaseException:
        return False


def kinds(target: Any, name: str) -> Iterator[frozenset[str]]:
    """The kinds of values that a parameter's annotation allows; nothing where that is unknown."""
    try:
        function: Callable[..., Any] = locate(target) if isinstance(target, str) else target
        parameter = _parameter(function, name)
    except Exception:  # what is no argument here is complained of elsewhere
        return
    if parameter is None:
        return
    if parameter.annotation is inspect.Parameter.empty:
        if isinstance(parameter.default, str):
            yield _OF_TEXT
        return
    found = frozenset(_kinds(parameter.annotation))
    if "anything" not in found:
        yield found | ({"nothing"} if parameter.default is None else set())


def _parameter(function: Callable[..., Any], name: str) -> inspect.Parameter | None:
    """The parameter of this name, also of the base class that keywords are handed on to."""
    found = inspect.signature(function, eval_str=True).parameters
    if name in found or not isinstance(function, type):
        return found.get(name)
    if not any(p.kind is p.VAR_KEYWORD for p in found.values()):
        return None
    bases = (base for base in function.__mro__[1:] if "__init__" in vars(base))
    base = next(bases, object)
    return None if base is object else _parameter(base, name)


def _kinds(hint: Any) -> Iterator[str]:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _kinds(part)
    elif origin is typing.Literal:
        for choice in typing.get_args(hint):
            yield KINDS[type(choice)]
    elif (kind := KINDS.get(origin or hint)) is not None:
        yield kind
    else:
        yield from _container(origin or hint)


def _container(kind: Any) -> Iterator[str]:
    if not isinstance(kind, type):
        yield "anything"
    elif issubclass(kind, collections.abc.Mapping):
        yield "dict"
    elif issubclass(kind, collections.abc.Iterable):
        yield "list"
    else:  # an object, which a config describes
        yield "dict" if kind is not object else "anything"


def _by_value(parent: Any, name: str) -> frozenset[str]:
    """What the value that is there tells: text may become a list or a dict, and nothing else."""
    try:
        value = OmegaConf.select(parent, name) if OmegaConf.is_config(parent) else None
    except OmegaConfBaseException:
        return _UNKNOWN
    return _OF_TEXT if isinstance(value, str) else _UNKNOWN
