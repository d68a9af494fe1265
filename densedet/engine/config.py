"""LazyConfig files and overrides, with the checks that LazyConfig leaves out.

LazyConfig creates whatever key an override names, and a misspelt argument of a class shows only
when the class is built. Here both are errors with close matches, before anything is built.
"""

import builtins
import difflib
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from densedet import model_zoo
from densedet.errors import ConfigError, DatasetError, DensedetError

_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a LazyConfig file, apply overrides, check the arguments of everything it describes.

    Args:
        path: A ``.py`` or ``.yaml`` file; if there is none, a name of :mod:`densedet.model_zoo`.
        overrides: ``key.sub=value`` in Hydra's grammar; ``+key=value`` adds a key that the config
            does not have.

    Raises:
        ConfigError: no such file, a file that does not run, an override or an argument that fits
            nothing; the message says where and names close matches.
    """
    file = Path(path)
    if not file.is_file():
        file = model_zoo.get_config_path(path)
    cfg = _load(file)
    apply_overrides(cfg, overrides)
    check_arguments(cfg)
    return cfg


def _load(file: Path) -> DictConfig:
    original_import = builtins.__import__
    try:
        cfg = LazyConfig.load(str(file))
    except DensedetError:
        raise
    except Exception as error:  # whatever the user's Python file raises
        lines = [
            f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)
        ]
        where = f"{file}, line {lines[-1]}" if lines else str(file)
        cause = (
            f" ({error.__cause__})" if isinstance(error, SyntaxError) and error.__cause__ else ""
        )
        raise ConfigError(f"{where}: {type(error).__name__}: {error}{cause}") from error
    finally:
        # LazyConfig patches the import statement and forgets to restore it when the file raises
        builtins.__import__ = original_import
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{file} holds a {type(cfg).__name__}, not a config with keys")
    return cfg


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Apply ``key=value`` overrides in place; a key that fits nothing is an error.

    A key fits if the config has it, or if it is an argument of the class at that place.
    ``+key=value`` is always accepted.

    Raises:
        ConfigError: bad syntax, or a key that fits nothing (with close matches).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"override {text!r} is not of the form key=value (quote strings): {reason}"
            ) from error
        if override.is_delete() or override.is_sweep_override():
            raise ConfigError(f"override {text!r}: only key=value and +key=value are supported")
        if not override.is_add():
            _check_key(cfg, override.key_or_group, text)
        try:
            LazyConfig.apply_overrides(cfg, [text])
        except (OmegaConfBaseException, KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"override {text!r}: {str(error).splitlines()[0]}") from error


def _check_key(cfg: DictConfig, key: str, text: str) -> None:
    node: Any = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        prefix = ".".join(parts[:depth])
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f"override {text!r}: {prefix} is a list of {len(node)}, not {part!r}"
                )
            node = node._get_node(int(part))
            continue
        if not isinstance(node, DictConfig) or node._is_none():
            value = None if isinstance(node, DictConfig) else node
            raise ConfigError(
                f"override {text!r}: {prefix} is {value!r} and has no key {part!r}; "
                f"set {prefix} itself, e.g. {prefix}={{{part}: ...}}"
            )
        if part not in node:
            _check_new_key(node, part, prefix, last=depth == len(parts) - 1, text=text)
            return
        node = node._get_node(part)
        node = node._value() if not OmegaConf.is_config(node) and hasattr(node, "_value") else node


def _check_new_key(node: DictConfig, part: str, prefix: str, last: bool, text: str) -> None:
    keys = {str(key) for key in node if key != "_target_"}
    if "_target_" in node:
        parameters = _parameters(_target(node, prefix))
        if last and parameters and part in parameters:
            return
        keys |= set(parameters or ())
    where = f"in {prefix}" if prefix else "at the top of the config"
    raise ConfigError(
        f"override {text!r}: there is no key {part!r} {where}{_hint(part, keys)} "
        "(+key=value adds a new key)"
    )


def check_arguments(cfg: Any, name: str = "") -> None:
    """Check that every class or function in ``cfg`` knows the arguments that it is given.

    Raises:
        ConfigError: an unknown argument, with its place and close matches, or a ``_target_`` that
            cannot be imported.
    """
    for place, node in _calls(cfg, name):
        target = _target(node, place)
        parameters = _parameters(target)
        if parameters is None:
            continue
        for key in node:
            if key != "_target_" and key not in parameters:
                raise ConfigError(
                    f"{place}: {_title(target)} has no argument "
                    f"{key!r}{_hint(str(key), parameters)}"
                )


def build(cfg: Any, name: str) -> Any:
    """Instantiate the part ``name`` of a config.

    Raises:
        ConfigError: an unknown or a missing argument, a value that is still ``???``, an
            interpolation that leads nowhere, a data set that is not registered, a value that a
            constructor refuses.
        DatasetError: Detectron2 found the data set empty.
    """
    check_arguments(cfg, name)
    for place, node in _calls(cfg, name):
        target = _target(node, place)
        needed = [
            key
            for key, parameter in (_signature(target) or {}).items()
            if parameter.default is inspect.Parameter.empty and parameter.kind not in _VARIABLE
        ]
        missing = [key for key in needed if key not in node]
        if missing:
            raise ConfigError(f"{place}: {_title(target)} needs {', '.join(missing)}")
    try:
        return instantiate(cfg)
    except DensedetError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
    except (KeyError, AssertionError, ValueError, TypeError) as error:
        reason = str(error.args[0]) if error.args else ""
        if "is not registered" in reason:
            raise ConfigError(f"{name}: {reason}; register it in dataloader.register") from error
        if "is empty" in reason or "No valid data found" in reason:
            raise DatasetError(f"{name}: {reason}") from error
        if isinstance(error, KeyError):
            raise
        parts = [" ".join(reason.split())]
        if isinstance(error, AssertionError) or not parts[0]:  # its text may be a mere path
            parts.append(_failed_line(error))
        raise ConfigError(f"{name}: {'; '.join(filter(None, parts))}") from error


def _failed_line(error: Exception) -> str:
    """Return what an exception, e.g. of an ``assert``, was raised by."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at '{frame.line}' ({Path(frame.filename).name}:{frame.lineno})"


def _calls(cfg: Any, name: str) -> Iterator[tuple[str, DictConfig]]:
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
            yield from _calls(child, f"{name}.{key}" if name else str(key))


def _target(node: DictConfig, place: str) -> Callable[..., Any]:
    target = node._target_
    if not isinstance(target, str):
        return target
    try:
        return locate(target)
    except Exception as error:  # locate raises what the module's import raises
        raise ConfigError(f"{place}: cannot import {target!r}: {error}") from error


def _signature(target: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    try:
        parameters = dict(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # built in C, without a signature
        return None
    return parameters


def _parameters(target: Callable[..., Any]) -> list[str] | None:
    """Return the keyword arguments of ``target``; None if it takes any."""
    parameters = _signature(target)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return [name for name, p in parameters.items() if p.kind is not p.VAR_POSITIONAL]


def _title(target: Callable[..., Any]) -> str:
    return getattr(target, "__qualname__", str(target))


def _hint(word: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return f"; there is {', '.join(names)}" if names else ""
