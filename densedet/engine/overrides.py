"""``key=value`` overrides of a LazyConfig: text stays as it was typed where the key expects text.

Hydra's grammar reads ``2024``, ``null`` and ``on`` as a number, nothing and a truth value, and does
not read ``/data/my data (1)`` at all. Whether a key expects text is asked from the annotation of
the argument that it is, of the argument that refers to it (``pretrained="${clip.pretrained}"``), of
the option of ``train``, and, where nothing is annotated, from the value that is there.
"""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from detectron2.config import LazyConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from densedet.engine.targets import KINDS, expected, find_target, hint, keyword_arguments
from densedet.errors import ConfigError

if TYPE_CHECKING:  # Hydra takes 0.1 s, and most configs have no overrides
    from hydra.core.override_parser.types import Override


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Apply ``key=value`` overrides in place; a key that fits nothing is an error.

    A key fits if the config has it, or if it is an argument of the class at that place.
    ``+key=value`` is always accepted. What a key expects decides how the value is read: text is
    taken as it is, or without the quotes around it; anything else is read by Hydra's grammar.

    Raises:
        ConfigError: bad syntax (with the line to type), or a key that fits nothing (with close
            matches).
    """
    for text in overrides:
        override, text = _parse(cfg, text)
        if override.is_delete() or override.is_sweep_override():
            raise ConfigError(
                f"override {text!r}: only key=value and +key=value are supported{_as_text(text)}"
            )
        if not override.is_add():
            _check_key(cfg, override.key_or_group, text)
        try:
            LazyConfig.apply_overrides(cfg, [text])
        except (OmegaConfBaseException, KeyError, ValueError, TypeError) as error:
            raise ConfigError(f"override {text!r}: {str(error).splitlines()[0]}") from error


def _parse(cfg: DictConfig, text: str) -> "tuple[Override, str]":
    """Read an override; return it with what Hydra is to be given for it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Quote, QuotedString
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    parsed: Override | None = None
    reason = ""
    try:
        parsed = parser.parse_override(text)
    except HydraException as error:
        reason = " ".join(str(error).split())
    key, equals, value = text.partition("=")
    if equals and _is_text(expected(cfg, key.lstrip("+")), value, parsed):
        quoted = f"{key}={QuotedString(value, Quote.single).with_quotes()}"
        try:
            return parser.parse_override(quoted), quoted
        except HydraException:  # of the key
            pass
    if parsed is None:
        raise ConfigError(
            f"override {text!r} is not of the form key=value{_as_text(text)}: {reason}"
        )
    return parsed, text


def _is_text(kinds: frozenset[str], value: str, parsed: "Override | None") -> bool:
    """Whether a value is to be taken as it is."""
    if "text" not in kinds:
        return False
    if parsed is None:
        return True
    if parsed.is_delete():
        return False
    if parsed.is_sweep_override():
        return True
    from hydra.core.override_parser.types import QuotedString

    read: Any = parsed._value
    if isinstance(read, QuotedString):
        return False
    kind: Any = type(read)
    found = KINDS.get(kind) or {dict: "dict", list: "list"}.get(kind, "text")
    return found == "text" or found not in kinds


def _as_text(text: str) -> str:
    key, equals, value = text.partition("=")
    if not equals:
        return ""
    from hydra.core.override_parser.types import Quote, QuotedString

    quote = Quote.single if '"' in value else Quote.double
    return f"; for text type {shlex.quote(f'{key}={QuotedString(value, quote).with_quotes()}')}"


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
        arguments = keyword_arguments(find_target(node, prefix))
        if last and arguments and part in arguments:
            return
        keys |= set(arguments or ())
    where = f"in {prefix}" if prefix else "at the top of the config"
    raise ConfigError(
        f"override {text!r}: there is no key {part!r} {where}{hint(part, keys)} "
        "(+key=value adds a new key)"
    )
