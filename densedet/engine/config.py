"""LazyConfig files and overrides, with the checks that LazyConfig leaves out.

LazyConfig creates whatever key an override names, and a misspelt argument of a class shows only
when the class is built. Here both are errors with close matches, before anything is built.
"""

import builtins
import datetime
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from densedet import model_zoo
from densedet.engine.overrides import apply_overrides
from densedet.engine.targets import (
    CONTAINER,
    calls,
    find_signature,
    find_target,
    hint,
    keyword_arguments,
    kinds,
    plain_value,
    title,
)
from densedet.errors import ConfigError, DatasetError, DensedetError

__all__ = ["apply_overrides", "build", "check_arguments", "load_config"]

_WORDS = {
    "text": "text",
    "number": "a number",
    "truth": "true or false",
    "nothing": "null",
    "list": "a list",
    "dict": "L(...)(...)",
}
# what constructors raise for a number or a part that is none for them; of others a message alone
# would not say where
_OF_A_VALUE = (
    *(KeyError, AssertionError, ValueError, TypeError),
    *(ArithmeticError, AttributeError, IndexError, RuntimeError),
)
_VARIABLE = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def load_config(path: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Load a LazyConfig file, apply overrides, check the arguments of everything it describes.

    Args:
        path: A ``.py`` or ``.yaml`` file; if there is none, a name of :mod:`densedet.model_zoo`.
        overrides: see :func:`densedet.engine.overrides.apply_overrides`.

    Modules in the folder of the file can be imported, by it and by the processes that it starts:
    ``from my_module import MyModel``.

    Raises:
        ConfigError: no such file, a file that does not run, an override or an argument that fits
            nothing; the message says where and names close matches.
    """
    file = Path(path)
    if file.exists() and not file.is_file():
        raise ConfigError(f"config {path} is no regular file; give a .py or .yaml file")
    if not file.is_file():
        file = model_zoo.get_config_path(path)
    elif str(folder := file.resolve().parent) not in sys.path:
        sys.path.append(str(folder))  # at the end: it hides nothing
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
        if isinstance(error, ModuleNotFoundError):
            cause = f" (looked for in {file.parent}, beside the config, and on PYTHONPATH)"
        raise ConfigError(f"{where}: {type(error).__name__}: {error}{cause}") from error
    finally:
        # LazyConfig patches the import statement and forgets to restore it when the file raises
        builtins.__import__ = original_import
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{file} holds a {type(cfg).__name__}, not a config with keys")
    return cfg


def check_arguments(cfg: Any, name: str = "") -> None:
    """Check that every class or function in ``cfg`` knows the arguments that it is given.

    Raises:
        ConfigError: an unknown argument, with its place and close matches, a ``_target_`` that
            cannot be imported, or a number, truth value or date where only text fits.
    """
    for place, node in calls(cfg, name):
        target = find_target(node, place)
        known = keyword_arguments(target)
        for key in node:
            if known is not None and key != "_target_" and key not in known:
                raise ConfigError(
                    f"{place}: {title(target)} has no argument {key!r}{hint(str(key), known)}"
                )
            value = plain_value(node, str(key))
            if value is not CONTAINER:
                _check_kind(f"{place}.{key!s}", value, target, str(key))


def _check_kind(place: str, value: Any, target: Callable[..., Any], name: str) -> None:
    """Refuse text where a number is wanted, and what YAML reads as a number where text is.

    What an argument of densedet's own takes is known; of other code only numbers and text are.
    """
    own = getattr(target, "__module__", "").partition(".")[0] == "densedet"
    for fitting in kinds(target, name):
        if isinstance(value, (int, float, datetime.date)):
            wrong = not fitting & {"number", "truth"} and (own or fitting <= {"text", "nothing"})
            wrong = wrong and "list" not in fitting
        elif isinstance(value, str):
            wrong = fitting <= {"number", "truth", "nothing"} or (own and fitting == {"dict"})
        else:
            wrong = own and value is None and "nothing" not in fitting
        if wrong:
            wanted = sorted(fitting - {"nothing"}) or ["nothing"]
            remedy = "; in the config put it in quotes" if wanted == ["text"] else ""
            raise ConfigError(
                f"{place}={value} has the type {type(value).__name__} where {title(target)} wants "
                f"{' or '.join(_WORDS[kind] for kind in wanted)}{remedy}"
            )


def build(cfg: Any, name: str, kind: type | tuple[type, ...] = object) -> Any:
    """Instantiate the part ``name`` of a config.

    Args:
        kind: what has to come of it.

    Raises:
        ConfigError: another kind of thing comes of it; an unknown or a missing argument, a value
            that is still ``???``, an interpolation that leads nowhere, a data set that is not
            registered, a value that a constructor refuses.
        DatasetError: Detectron2 found the data set empty.
    """
    check_arguments(cfg, name)
    for place, node in calls(cfg, name):
        target = find_target(node, place)
        needed = [
            key
            for key, parameter in (find_signature(target) or {}).items()
            if parameter.default is inspect.Parameter.empty and parameter.kind not in _VARIABLE
        ]
        missing = [key for key in needed if key not in node]
        if missing:
            raise ConfigError(f"{place}: {title(target)} needs {', '.join(missing)}")
    try:
        built = instantiate(cfg)
    except DensedetError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
    except _OF_A_VALUE as error:
        reason = str(error.args[0]) if error.args else ""
        if "is not registered" in reason:
            raise ConfigError(f"{name}: {reason}; register it in dataloader.register") from error
        if "is empty" in reason or "No valid data found" in reason:
            raise DatasetError(f"{name}: {reason}") from error
        if isinstance(error, KeyError):
            raise
        parts = [" ".join(reason.split())]
        if not (isinstance(error, (ValueError, TypeError)) and parts[0]):
            parts.append(_failed_line(error))
        raise ConfigError(f"{name}: {'; '.join(filter(None, parts))}") from error
    if not isinstance(built, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ConfigError(
            f"{name} is of the type {type(built).__name__} and has to be {wanted}: describe one "
            "with L(...)(...)"
        )
    return built


def _failed_line(error: Exception) -> str:
    """Return what an exception, e.g. of an ``assert``, was raised by."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at '{frame.line}' ({Path(frame.filename).name}:{frame.lineno})"
