"""How a process ends: exit codes, one line for what is no defect, and SIGTERM."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from densedet.errors import DensedetError, Terminated
from densedet.files import DISK_FULL

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)


def exit_code(main: Callable[[], int | None]) -> int:
    """Run ``main`` and turn the errors of bad input into one line on stderr and an exit code.

    Args:
        main: A function without arguments; None counts as 0.

    Returns:
        The result of ``main``; 2 for a :class:`DensedetError` that says no other, for a file or
        folder that the system does not let us look at, and for a full disk; 130 for Ctrl-C, 143
        for :class:`Terminated`. Any other exception is a defect and keeps its traceback.
    """
    try:
        return main() or 0
    except DensedetError as error:
        sys.stderr.write(f"error: {one_line(error)}\n")
        return error.exit_code
    except OSError as error:
        if error.errno in DISK_FULL:
            sys.stderr.write(f"error: {error.filename or 'a file'} cannot be written: ")
            sys.stderr.write(f"{error.strerror}; make room, or choose another place\n")
        elif error.errno in _UNUSABLE and error.filename is not None:
            sys.stderr.write(f"error: {error.filename}: {error.strerror}; choose another place\n")
        else:
            raise
        return EXIT_USAGE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except Terminated as error:
        sys.stderr.write(f"terminated by SIGTERM{f': {error}' if str(error) else ''}\n")
        return EXIT_TERMINATED


def one_line(error: BaseException) -> str:
    """The message of an error in one line; of one in a loader's worker without the traceback."""
    text = str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:  # torch's ExceptionWrapper
        kind = type(error).__name__
        text = text.rpartition(f"{kind}: ")[2]
    return " ".join(text.split())


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Raise :class:`Terminated` where SIGTERM finds this process inside the block; once.

    Processes that are forked meanwhile end at once, as by default. Does nothing in a thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        signal.signal(number, signal.SIG_IGN)  # a second one, e.g. of torchrun, while we tidy up
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, before)
