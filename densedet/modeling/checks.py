"""Checks of settings that several modules have."""

from typing import Any, get_args

from densedet.errors import ConfigError


def check_choice(option: str, value: str, choices: Any) -> None:
    """Raise ConfigError, naming the option, unless the value is one of a ``Literal``'s."""
    if value not in get_args(choices):
        raise ConfigError(f"{option}={value!r}: choose from {', '.join(get_args(choices))}")


def check_positive(owner: str, **settings: float) -> None:
    """Raise ConfigError, naming the owner, for the first setting that is not above 0."""
    for name, value in settings.items():
        if not value > 0:
            raise ConfigError(f"{owner} {name}={value}: it must be above 0")
