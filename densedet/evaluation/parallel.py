"""Work on images one by one while a model goes on, here or in worker processes."""

from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from densedet.errors import ConfigError

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")

_WAITING = 4  # tasks a worker, so that none is idle and few images are held in memory


class TaskPool(Generic[Key, Result]):
    """Calls a function for each key, at once or in worker processes.

    The processes start with the first task, in the way that Python's multiprocessing has by
    default, as those of a data loader do. Where they are forked they must not use CUDA.

    Args:
        workers: processes; 0 calls the function in this one.

    Raises:
        ConfigError: ``workers`` is negative.
    """

    def __init__(self, workers: int) -> None:
        if workers < 0:
            raise ConfigError(f"workers={workers} must not be negative")
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._pending: dict[Key, Future[Result]] = {}
        self._results: dict[Key, Result] = {}

    def __contains__(self, key: Key) -> bool:
        return key in self._results or key in self._pending

    def submit(self, key: Key, function: Callable[..., Result], *arguments: Any) -> None:
        """Call the function, or have it called; waits while too many tasks are waiting.

        Raises:
            ConfigError: a worker was killed.
            Exception: what the function raised, for this key or one before.
        """
        if not self._workers:
            self._results[key] = function(*arguments)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers)
        with self._ending_on_error():
            self._wait(_WAITING * self._workers)
            self._pending[key] = self._pool.submit(function, *arguments)

    def finish(self) -> dict[Key, Result]:
        """Wait for all tasks and end the processes.

        Returns:
            All results since the last :meth:`reset`, in the order of the calls.

        Raises:
            ConfigError: a worker was killed.
            Exception: what the function raised.
        """
        with self._ending_on_error():
            self._wait(0)
        self._close()
        return dict(self._results)

    def reset(self) -> None:
        """Forget all results, and end the processes."""
        self._close()
        self._results.clear()

    def _close(self) -> None:
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _wait(self, left: int) -> None:
        """Take results, oldest first, until at most ``left`` tasks are not done."""
        while len(self._pending) > left:
            key, task = next(iter(self._pending.items()))
            self._results[key] = task.result()
            del self._pending[key]

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            self._close()
            raise ConfigError(
                f"one of {self._workers} evaluation workers was killed, probably for want of "
                "memory; use fewer workers"
            ) from error
        except BaseException:
            self._close()
            raise
