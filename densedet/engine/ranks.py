"""What one process of a job says when another is gone or does not answer."""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from detectron2.utils import comm

from densedet import compat
from densedet.engine.logs import log_file
from densedet.errors import DensedetError, Terminated
from densedet.exits import one_line

_PATIENCE = 5.0  # seconds in which a process that waits too says so
_LOST = (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)
# gloo raises a bare RuntimeError that begins with the place in its source
_LOST_WORDS = ("gloo/", "Connection closed by peer", "Connection reset by peer", "NCCL")


class RankError(DensedetError, RuntimeError):
    """Another process of the job is gone or does not answer."""

    exit_code = 1


@dataclass(frozen=True)
class Peer:
    """A process of the job: where it runs, and where it logs."""

    rank: int
    host: str
    pid: int
    log: str

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    def is_gone(self) -> bool:
        """Whether the process ended; one on another host, or that cannot be asked, did not."""
        if self.host != socket.gethostname():
            return False
        try:
            os.kill(self.pid, 0)
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except ProcessLookupError:
            return True
        except (OSError, IndexError):  # not ours, or a system without /proc
            return False
        return state in "ZX"


@contextmanager
def watching(output_dir: str) -> Iterator[None]:
    """Name the processes that are gone, or do not answer, when this one cannot reach them.

    To be entered by all processes of a job; in one process it does nothing.

    Args:
        output_dir: with the logs of all processes.

    Raises:
        RankError: in place of what torch raises where a process is lost, in one line.
        Terminated: as it came, with the name of the process that is gone.
    """
    if comm.get_world_size() == 1:
        yield
        return
    rank = comm.get_rank()
    log = log_file(output_dir, rank)
    peers = [Peer(*p) for p in comm.all_gather((rank, socket.gethostname(), os.getpid(), str(log)))]
    others = [peer for peer in peers if peer.rank != rank]
    try:
        yield
    except Terminated as error:
        gone = [peer for peer in others if peer.is_gone()]
        raise Terminated(_gone(gone[0])) if gone else error from None
    except Exception as error:
        waits = is_lost(error)
        _tell(rank, None if waits else f"{type(error).__name__}: {one_line(error)}")
        if not waits:
            raise
        raise RankError(_find_lost(others) or one_line(error)) from error


def is_lost(error: BaseException) -> bool:
    """Whether torch cannot reach another process."""
    words = str(error)
    return isinstance(error, _LOST) or (
        isinstance(error, RuntimeError) and any(word in words for word in _LOST_WORDS)
    )


def _find_lost(others: list[Peer]) -> str | None:
    """Wait until the other processes said that they wait too; describe one that did not."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        told = _told(others)
        for peer in others:
            if (reason := told.get(peer.rank)) is not None:
                return f"{peer} ended: {reason}; its log: {peer.log}"
            if peer.is_gone():
                return _gone(peer)
        silent = [peer for peer in others if peer.rank not in told]
        if not silent:
            return None
        if time.monotonic() > deadline:
            return (
                f"{silent[0]} does not answer; its log: {silent[0].log} (it may take longer than "
                "train.timeout allows)"
            )
        time.sleep(0.1)


def _gone(peer: Peer) -> str:
    return f"{peer} is gone; its log: {peer.log}"


def _tell(rank: int, reason: str | None) -> None:
    """Tell the others that this process ended with an error of its own, or (None) waits too."""
    try:
        compat.rendezvous_store().set(f"densedet/ended/{rank}", json.dumps(reason))
    except (RuntimeError, ValueError):  # the store is gone with its process
        return


def _told(others: list[Peer]) -> Mapping[int, str | None]:
    found = {}
    try:
        store = compat.rendezvous_store()
        for peer in others:
            key = f"densedet/ended/{peer.rank}"
            if store.check([key]):
                found[peer.rank] = json.loads(store.get(key))
    except (RuntimeError, ValueError):
        pass
    return found
