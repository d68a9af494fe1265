"""What the measurements run on: device, precision, matrix peak, memory of a process."""

import contextlib
import datetime
import multiprocessing
import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from densedet.benchmark.timing import Timing
from densedet.engine.options import PRECISIONS
from densedet.engine.precision import warn_if_slow
from densedet.errors import ConfigError

# chunks from one MiB on get pages of their own
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


@dataclass(frozen=True)
class Settings:
    """What all benchmarks share.

    Attributes:
        device: "cpu", "cuda" or "auto" (CUDA where there is one).
        precision: "fp32", "bf16" or "fp16".
        compile: whether ``torch.compile`` is applied to both sides.
        threads: threads of torch on the CPU.
        repeats: timed runs of each side.
        warmup: runs of each side before them.

    Raises:
        ConfigError: a number below its least, an unknown precision, or a device that is not there.
    """

    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    threads: int = 1
    repeats: int = 10
    warmup: int = 2

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision {self.precision} is none of {', '.join(PRECISIONS)}")
        positive(threads=self.threads, repeats=self.repeats, warmup=self.warmup)
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"--device {self.device} is none of auto, cpu, cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: torch sees no CUDA device; use --device cpu")
        warn_if_slow(self.dtype, self.torch_device)

    @property
    def torch_device(self) -> torch.device:
        """The device that ``device`` means here."""
        cuda = self.device != "cpu" and torch.cuda.is_available()
        return torch.device("cuda" if cuda else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type that matrix products are done in."""
        return PRECISIONS[self.precision]

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision as in a training; nothing for fp32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, dtype=self.dtype)


def positive(**numbers: int) -> None:
    """Raise ConfigError, naming the option, unless each number is at least 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} must be at least 1")


def describe(settings: Settings) -> dict[str, Any]:
    """Processor, GPU, versions, threads and date (UTC), as they go into the JSON."""
    cuda = settings.torch_device.type == "cuda"
    return {
        "cpu": _processor(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "device": settings.torch_device.type,
        "precision": settings.precision,
        "compile": settings.compile,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "Pillow", "densedet")},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """One line about :func:`describe`'s result, for the table."""
    parts = [
        machine["gpu"] or machine["cpu"],
        f"{machine['threads']} threads",
        machine["precision"] + (" compiled" if machine["compile"] else ""),
        f"torch {machine['torch']}",
        f"torchvision {machine['torchvision']}",
        machine["date"],
    ]
    return ", ".join(parts)


class MatrixProduct:
    """Large matrix products (4096^3 on CUDA, 2048^3 on the CPU) to compare with what is possible.

    Of the settings' precision, device and threads; fp32 is what torch takes for it, TF32 or not.

    Attributes:
        flops: of one call.
    """

    def __init__(self, settings: Settings, products: int = 3) -> None:
        """Make the matrices; a call multiplies them ``products`` times."""
        device = settings.torch_device
        size = 4096 if device.type == "cuda" else 2048
        self.left, self.right = (
            torch.randn(size, size, device=device).to(settings.dtype) for _ in range(2)
        )
        self.products = products
        self.flops = products * 2 * size**3

    def __call__(self) -> None:
        """Multiply."""
        for _ in range(self.products):
            self.left @ self.right

    def peak(self, timing: Timing) -> float:
        """FLOP/s of the fastest call."""
        return self.flops / min(timing.seconds)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a fresh process, so that its peak memory is its own.

    There glibc gives freed memory back at once: what is resident is then what is in use, not what
    the allocator keeps (for a training step of a ViT-B that is a gigabyte).

    Raises:
        ConfigError: the process was killed, as a rule for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    with _environment(_RETURN_MEMORY), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise ConfigError(
                "the process that measures memory was killed, probably for want of memory; use "
                "smaller sizes (--image-size, --batch)"
            ) from error


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have these environment variables, for processes started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: tensors on a CUDA device, or all resident memory of this process.

    The latter has nothing subtracted: Python, the libraries and the weights are in it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # a child's ru_maxrss may begin with what its parent had
        lines = status.read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} cores of {names[0]}" if names else platform.processor() or "unknown CPU"
