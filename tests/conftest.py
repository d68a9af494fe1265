"""Fixtures that all tests share: the reference vectors, and a limit of two threads."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Read by OpenMP when it is loaded, so before torch is; child processes inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

PATIENCE = 900  # seconds that a process may take; also on a machine with a load of 20


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> Iterator[None]:
    """Let torch use at most two threads."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(min(2, torch.get_num_threads()))
    yield


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the cache of class embeddings, also that of child processes, out of the home folder."""
    before = os.environ.get("DENSEDET_CACHE")
    os.environ["DENSEDET_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["DENSEDET_CACHE"]
    if before is not None:
        os.environ["DENSEDET_CACHE"] = before


@pytest.fixture(scope="module", autouse=True)
def _data_sets_of_a_module() -> Iterator[None]:
    """Let the catalogs forget what the tests of a file registered."""
    with _forgetting():
        yield


@pytest.fixture(autouse=True)
def _data_sets_of_a_test() -> Iterator[None]:
    """Let the catalogs forget what a test registered."""
    with _forgetting():
        yield


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """Lets no file of this process become larger than so many bytes, as on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def load_script() -> Callable[[str], ModuleType]:
    """A function from a script of this repository, such as "tools/demo.py", to its module."""

    def load(path: str) -> ModuleType:
        file = Path(__file__).parents[1] / path
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module  # where dataclasses look
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def run_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``subprocess.run``, captured as text; no process is left behind, whatever happens."""

    def run(
        command: Sequence[Any], patience: float = PATIENCE, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with _ending(subprocess.Popen(command, **pipes, **options)) as process:
            out, err = process.communicate(timeout=patience)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


@pytest.fixture
def start_process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """As ``subprocess.Popen``; the test ends it, with all that it started."""
    started: list[subprocess.Popen[str]] = []

    def start(command: Sequence[Any], **options: Any) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(command, text=True, **options))
        return started[-1]

    yield start
    for process in started:
        with _ending(process):
            pass


@contextmanager
def _ending(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process and all that it started; torchrun's workers are sessions of their own."""
    try:
        yield process
    finally:
        for pid in [process.pid, *_descendants(process.pid)] if process.poll() is None else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _descendants(pid: int) -> list[int]:
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:  # grows meanwhile
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


@contextmanager
def _forgetting() -> Iterator[None]:
    if importlib.util.find_spec("detectron2") is None:
        yield
        return
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = [(catalog, set(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for catalog, names in before:
        for name in set(catalog) - names:
            catalog.pop(name)


@pytest.fixture(autouse=True)
def _skip_without_cuda(request: pytest.FixtureRequest) -> None:
    """Skip the tests marked ``cuda`` where there is no device."""
    if request.node.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of reference vectors: ``DENSEDET_GOLDEN``, by default ``tests/golden``."""
    folder = Path(os.environ.get("DENSEDET_GOLDEN") or Path(__file__).parent / "golden")
    if not (folder / "index.json").is_file():
        pytest.fail(f"no reference vectors: {folder / 'index.json'} is missing", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def golden_index(golden_dir: Path) -> dict[str, Any]:
    """The sizes, depths and names of the reference vectors, from their ``index.json``."""
    index: dict[str, Any] = json.loads((golden_dir / "index.json").read_text(encoding="utf-8"))
    return index
