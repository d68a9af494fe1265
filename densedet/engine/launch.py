"""Starting a job: one process, one a GPU (``--num-gpus``), or under ``torchrun``.

``torchrun`` works on the CPU too (gloo). Each process finds its rank in RANK, LOCAL_RANK,
WORLD_SIZE and LOCAL_WORLD_SIZE, and the others at MASTER_ADDR and MASTER_PORT. Queues leave some
of these behind; what is there must fit together.
"""

import gc
import logging
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as launch_gpus
from detectron2.utils import comm

from densedet.engine.ranks import RankError
from densedet.errors import ConfigError
from densedet.exits import exit_code, raising_on_sigterm

logger = logging.getLogger(__name__)

_LEFT_BEHIND = (
    "for one process unset RANK, LOCAL_RANK and WORLD_SIZE (a queue may have left them behind); "
    "several are started by torchrun, which sets them all"
)
_PATIENCE = 30.0  # seconds that processes have to end, as those of torchrun


def under_torchrun() -> bool:
    """Return whether ``torchrun`` started this process.

    Raises:
        ConfigError: variables that ``torchrun`` sets are there, but do not fit together.
    """
    world = _number("WORLD_SIZE", 1)
    if world > 1:
        needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in needed if not os.environ.get(name)]
        if missing:
            raise ConfigError(f"WORLD_SIZE={world} is set and {missing[0]} is not: {_LEFT_BEHIND}")
        _number("MASTER_PORT", 0)
    rank = _number("RANK", 0)
    if rank >= world and "WORLD_SIZE" in os.environ:
        raise ConfigError(f"RANK={rank} does not fit WORLD_SIZE={world}: {_LEFT_BEHIND}")
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))


def _number(name: str, default: int) -> int:
    """A variable of the environment that holds a whole number."""
    text = os.environ.get(name) or str(default)
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is no whole number: {_LEFT_BEHIND}")
    return int(text)


def _warn_of_slurm() -> None:
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        logger.warning(
            "srun starts %s tasks, each of which does the whole job in the same output folder; use "
            "one task a machine, with --num-gpus or torchrun",
            tasks,
        )


def resolve_device(name: str, option: str = "train.device") -> torch.device:
    """Return the device of this process.

    Args:
        name: "auto" (CUDA where there is one, else CPU), "cuda" (the GPU of this process),
            "cuda:N", "cpu" or "mps".
        option: what the message calls the setting that has the name.

    Raises:
        ConfigError: there is no such device.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(name)):
        raise ConfigError(f"{option}={name!r}: choose auto, cpu, cuda, cuda:N or mps")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"{option}=mps: this machine has no MPS device; use auto or cpu")
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = _local_rank() if device.index is None else device.index
    if index >= count:
        raise ConfigError(
            f"{option}={name}: process {_local_rank()} needs GPU {index}, torch sees {count}; "
            f"use {option}=cpu or start fewer processes"
        )
    return torch.device("cuda", index)


def use_device(name: str) -> torch.device:
    """As `resolve_device`; a GPU is then the current one, which Detectron2's evaluation asks.

    Raises:
        ConfigError: there is no such device.
    """
    device = resolve_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def launch(
    job: Callable[..., Any],
    args: tuple[Any, ...] = (),
    *,
    device: str = "auto",
    num_gpus: int | None = None,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    timeout: float = 1800.0,
) -> None:
    """Run ``job(*args)`` in every process of the job.

    Args:
        job: A function that can be pickled by name.
        device: ``cfg.train.device``.
        num_gpus: GPUs (processes) of this machine; None: one process, or what ``torchrun`` started.
        dist_url: As ``init_method`` of ``torch.distributed``; "auto" finds a port on one machine.
        timeout: Seconds that a process waits for the others.

    Raises:
        ConfigError: more GPUs than there are, several processes for a GPU that ``device`` names,
            or options that contradict each other.
        RankError: a process that was started here was killed.
        SystemExit: one failed, and has said why on stderr.
    """
    if under_torchrun():
        if num_gpus is not None or num_machines != 1:
            raise ConfigError(
                "under torchrun leave out --num-gpus and --num-machines: it sets both"
            )
        _run_under_torchrun(job, args, device, timedelta(seconds=timeout))
        return
    _warn_of_slurm()
    if num_machines == 1 and machine_rank:
        raise ConfigError(f"--machine-rank {machine_rank} does not fit --num-machines 1")
    if num_gpus is None and num_machines == 1:
        job(*args)
        return
    gpus = 1 if num_gpus is None else num_gpus
    _check_gpus(gpus, num_machines, machine_rank, device, dist_url)
    if gpus == num_machines == 1:
        job(*args)
        return
    others = set(multiprocessing.active_children())
    try:
        launch_gpus(
            _run_child,
            gpus,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=(job, args),
            timeout=timedelta(seconds=timeout),
        )
    except mp.ProcessExitedException as error:
        if error.signal_name is None:
            sys.exit(error.exit_code)
        rank = machine_rank * gpus + error.error_index
        raise RankError(
            f"rank {rank} (process {error.error_pid}) was killed by {error.signal_name}; see its "
            "log in train.output_dir"
        ) from error
    finally:
        _end(set(multiprocessing.active_children()) - others)


def _run_child(job: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Run ``job(*args)`` in a process of its own; wrong input ends it with one line and code 2."""

    def work() -> None:
        job(*args)

    with raising_on_sigterm():
        code = exit_code(work)
    if code:
        sys.exit(code)


def _end(children: set[multiprocessing.process.BaseProcess]) -> None:
    """End processes that would go on after an error or a signal."""
    for child in children:
        child.terminate()
    for child in children:
        child.join(_PATIENCE)
        child.kill()


def _check_gpus(gpus: int, machines: int, rank: int, device: str, dist_url: str) -> None:
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus < 1 or gpus > found or not device.startswith(("auto", "cuda")):
        raise ConfigError(
            f"--num-gpus {gpus}, train.device={device}: torch sees {found} CUDA devices; on the "
            f"CPU leave --num-gpus out, or run 'torchrun --nproc-per-node {max(gpus, 1)}' for "
            "several processes"
        )
    _check_device(device, gpus * machines)
    if machines < 1 or not 0 <= rank < machines:
        raise ConfigError(f"--machine-rank {rank} does not fit --num-machines {machines}")
    if machines > 1 and dist_url == "auto":
        raise ConfigError("several machines need --dist-url tcp://HOST:PORT of the first machine")


def _check_device(device: str, processes: int) -> None:
    if processes > 1 and device.startswith("cuda:"):
        raise ConfigError(
            f"train.device={device}: {processes} processes would share this GPU; use "
            "train.device=cuda or auto, which gives each its own"
        )


def _run_under_torchrun(
    job: Callable[..., Any], args: tuple[Any, ...], device: str, timeout: timedelta
) -> None:
    world = _number("WORLD_SIZE", 1)
    local = _number("LOCAL_WORLD_SIZE", world)
    _check_device(device, world)
    resolved = use_device(device)
    if world == 1:
        job(*args)
        return
    backend = "nccl" if resolved.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, init_method="env://", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        place = ":".join(os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ConfigError(
            f"the {world} processes do not meet at {place}: {str(error).splitlines()[0]}"
        ) from error
    try:
        comm.create_local_process_group(local)
        comm.synchronize()
        job(*args)
        comm.synchronize()
    finally:
        _leave_process_groups()


def _leave_process_groups() -> None:
    """End the process groups while the interpreter is still there.

    A group that something still refers to is destroyed when the process exits, where gloo's threads
    abort it now and then. Detectron2 keeps its groups in module variables, models in cycles.
    """
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    dist.destroy_process_group()
    gc.collect()


def _local_rank() -> int:
    if dist.is_available() and dist.is_initialized():
        return int(comm.get_local_rank())
    return _number("LOCAL_RANK", 0)
