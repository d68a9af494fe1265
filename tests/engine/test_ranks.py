"""Two processes of a job (gloo): one dies, hangs, or is ended by SIGTERM."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from densedet.engine.ranks import Peer, watching


def children(pid):
    """The processes that a process started, e.g. the workers of its loader."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(file.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_rank_that_dies_is_named_with_its_log(tmp_path, overrides, start_rank):
    """Rank 0 scores for longer than a step may take, and then rank 1 is killed."""
    options = [*overrides, "train.timeout.steps=5", "train.eval_period=2"]
    dying = start_rank(1, "rcnn", *options, TINY_KILL_AT="3")
    left = start_rank(0, "rcnn", *options, TINY_SCORE_SECONDS="8")
    assert dying.wait() == -signal.SIGKILL
    assert left.wait() == 1
    said = (tmp_path / "rank0.txt").read_text().strip().splitlines()
    peer = f"rank 1 (process {dying.pid} on {socket.gethostname()})"
    assert said[-1] == f"error: {peer} is gone; its log: {tmp_path}/out/log.txt.rank1"
    assert not any("Traceback" in line for line in said)
    assert said[-1].removeprefix("error: ") in (tmp_path / "out/log.txt").read_text()


def test_a_rank_that_hangs_is_named_and_sigterm_ends_it_with_its_workers(
    tmp_path, overrides, start_rank
):
    options = [*overrides, "train.timeout.steps=5", "dataloader.train.num_workers=1"]
    hanging = start_rank(1, "rcnn", *options, TINY_HANG_AT="2")
    left = start_rank(0, "rcnn", *options)
    assert left.wait() == 1
    said = (tmp_path / "rank0.txt").read_text().strip().splitlines()
    peer = f"error: rank 1 (process {hanging.pid} on {socket.gethostname()}) does not answer"
    assert said[-1].startswith(f"{peer}; its log: {tmp_path}/out/log.txt.rank1 (")
    assert "train.timeout" in said[-1] and not any("Traceback" in line for line in said)

    file = tmp_path / "rank1.txt"
    assert "hangs" in file.read_text()
    workers = children(hanging.pid)
    assert workers
    hanging.terminate()
    assert hanging.wait() == 143
    said = file.read_text().strip().splitlines()
    assert said[-1].startswith(f"terminated by SIGTERM: rank 0 (process {left.pid} on ")
    assert said[-1].endswith(f"is gone; its log: {tmp_path}/out/log.txt")
    assert not any("Traceback" in line for line in said)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), seconds=20)


def test_a_process_that_ended_is_gone(start_process):
    process = start_process(["sleep", "60"])
    peer = Peer(1, socket.gethostname(), process.pid, "log.txt.rank1")
    assert not peer.is_gone()
    process.kill()
    wait_for(peer.is_gone)  # still a zombie, which nobody has waited for
    process.wait()
    assert peer.is_gone()
    assert not Peer(1, "elsewhere", process.pid, "").is_gone()


def test_one_process_has_nobody_to_name():
    with pytest.raises(dist.DistBackendError, match="lost"), watching("out"):
        raise dist.DistBackendError("lost")
    assert os.getpid()
