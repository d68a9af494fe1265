"""What a server of pages needs on its machine."""

import socket
import time
from pathlib import Path

from densedet.errors import ConfigError


def check_address(host: str, port: int) -> None:
    """Raise ConfigError if nobody can listen there."""
    try:
        if not 0 < port < 65_536:
            raise ValueError("a port is 1 to 65535")
        socket.create_server((host, port)).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot listen at {host}:{port} ({error}); choose another --host or --port"
        ) from error


def remove_old(folder: Path, seconds: float) -> None:
    """Remove results that have been there for more than ``seconds``."""
    for results in folder.glob("results-*.json"):
        if time.time() - results.stat().st_mtime > seconds:
            results.unlink(missing_ok=True)
