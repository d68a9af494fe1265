"""Tasks here and in workers: order, errors, processes that end."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from densedet.errors import ConfigError
from densedet.evaluation.parallel import TaskPool

NewProcesses = Callable[[], list[Any]]


def _square(number: int) -> tuple[int, int]:
    time.sleep(0.01 * (number % 3))
    return os.getpid(), number**2


def _fail(number: int) -> None:
    raise ValueError(f"task {number}")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_are_in_the_order_of_the_calls(workers: int, new_processes: NewProcesses) -> None:
    pool: TaskPool[str, tuple[int, int]] = TaskPool(workers)
    for number in range(20):
        assert f"task {number}" not in pool
        pool.submit(f"task {number}", _square, number)
        assert f"task {number}" in pool
    results = pool.finish()
    assert list(results) == [f"task {number}" for number in range(20)]
    assert [square for _, square in results.values()] == [number**2 for number in range(20)]
    processes = {process for process, _ in results.values()}
    assert (processes == {os.getpid()}) == (workers == 0) and len(processes) <= max(workers, 1)
    assert new_processes() == []

    assert pool.finish() == results
    pool.submit("more", _square, 5)
    assert list(pool.finish()) == [*results, "more"]
    pool.reset()
    assert pool.finish() == {} and "more" not in pool


@pytest.mark.parametrize("workers", [0, 2])
def test_errors(workers: int, new_processes: NewProcesses) -> None:
    pool: TaskPool[int, None] = TaskPool(workers)
    with pytest.raises(ValueError, match="task 0"):
        for number in range(30):
            pool.submit(number, _fail, number)
    assert new_processes() == []


def test_a_killed_worker(new_processes: NewProcesses) -> None:
    pool: TaskPool[int, None] = TaskPool(1)
    pool.submit(0, _die)
    with pytest.raises(ConfigError, match="one of 1 evaluation workers was killed"):
        for number in range(1, 30):
            pool.submit(number, _square, number)
        pool.finish()
    assert new_processes() == []


def test_fewer_than_no_workers() -> None:
    with pytest.raises(ConfigError, match="workers=-1 must not be negative"):
        TaskPool(-1)
