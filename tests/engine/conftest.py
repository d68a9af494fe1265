"""The tiny configs, with their folders in tmp_path, and the real tool in a process of its own."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path(__file__).parent / "configs"


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """Overrides that put data and output of a tiny config into tmp_path."""
    return [f"train.output_dir='{tmp_path}/out'", f"dataloader.register.0.root='{tmp_path}/data'"]


@pytest.fixture
def load_tiny(overrides: list[str]) -> Callable[..., Any]:
    """Load tests/engine/configs/tiny_{name}.py with more overrides."""
    from densedet.engine.config import load_config

    def load(name: str, *more: str) -> Any:
        return load_config(str(CONFIGS / f"tiny_{name}.py"), [*overrides, *more])

    return load


@pytest.fixture(scope="session")
def run_tool(run_process: Callable[..., Any]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run tools/lazyconfig_train_net.py on a tiny config; nproc > 0 uses torchrun."""

    def run(
        name: str, *arguments: str, nproc: int = 0, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable]
        if nproc:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
        command += [str(ROOT / "tools" / "lazyconfig_train_net.py")]
        command += ["--config-file", str(CONFIGS / f"tiny_{name}.py"), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(env or {})}
        return run_process(command, env=environment)

    return run


@pytest.fixture
def start_rank(start_process: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Start the tool on a tiny config as one of two ranks, without torchrun, which would end the
    others; its stderr goes to ``{tmp_path}/rank{rank}.txt``."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = str(sock.getsockname()[1])

    def start(rank: int, name: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(ROOT / "tools/lazyconfig_train_net.py"), "--config-file"]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        place |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **place, **env}
        with open(tmp_path / f"rank{rank}.txt", "w") as said:
            return start_process(
                [*command, str(CONFIGS / f"tiny_{name}.py"), *arguments],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    return start


@pytest.fixture(autouse=True)
def _restore_process() -> Iterator[None]:
    """Leave threads and loggers as other tests expect them."""
    import torch

    threads = torch.get_num_threads()
    names = ("densedet", "detectron2", "fvcore")
    before = [
        (log, log.level, log.propagate, list(log.handlers)) for log in map(logging.getLogger, names)
    ]
    yield
    torch.set_num_threads(threads)
    for log, level, propagate, handlers in before:
        log.setLevel(level)
        log.propagate = propagate
        log.handlers[:] = handlers
