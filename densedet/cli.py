"""The ``densedet`` command, and what every command line of this project shares.

Exit codes: 0 success, 1 the command ran and found a problem (``densedet doctor``; a process of the
job that is gone), 2 wrong use or wrong input (one line ``error: ...`` on stderr), 130 interrupted,
143 terminated (SIGTERM).
"""

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from densedet import __version__, compat
from densedet.errors import ConfigError, DensedetError, Terminated
from densedet.files import DISK_FULL

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS)
compat.hush_deprecations()  # here, since the tools import Detectron2 before anything else runs

_NO_DATASETS = "data sets: not looked at; mend the problems above, then run this again"


class ToolParser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, like every other error of a tool.

    Raises:
        ConfigError: from ``parse_args``, where ``argparse`` would print its usage and exit.
    """

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with ``message``."""
        raise ConfigError(f"{message} (see {self.prog} --help)")


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
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
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


def run_tool(main: Callable[[], int | None]) -> NoReturn:
    """Run the ``main`` of a tool and exit with its code; see :func:`exit_code`."""
    sys.exit(exit_code(lambda: _guarded(main)))


def _guarded(main: Callable[[], int | None]) -> int | None:
    with raising_on_sigterm():
        return main()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``densedet``; each subcommand stores its function as ``run``."""
    parser = ToolParser(prog="densedet", description="Detection with words as classes.")
    parser.add_argument("--version", action="version", version=f"densedet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    doctor = commands.add_parser(
        "doctor",
        help="print the versions of what densedet stands on and the remedy for each mismatch",
        description="Exit code 0: usable. Exit code 1: something named 'problem' must be mended.",
    )
    doctor.add_argument(
        "--datasets", action="store_true", help="also say how far each of the data sets is"
    )
    doctor.add_argument(
        "--root", help="folder of the data sets (default: $DETECTRON2_DATASETS, or else datasets)"
    )
    doctor.set_defaults(run=_doctor)
    return parser


def _doctor(args: argparse.Namespace) -> int:
    from densedet.doctor import examine, format_report

    if args.root is not None and not args.datasets:
        raise ConfigError("--root is the folder of the data sets; add --datasets")
    report = examine()
    sys.stdout.write(format_report(report) + "\n")
    if args.datasets:
        text = _dataset_report(args.root) if report.usable else _NO_DATASETS
        sys.stdout.write(f"\n{text}\n")
    return 0 if report.usable else 1


def _dataset_report(root: str | None) -> str:
    from densedet.data.benchmarks import BENCHMARKS
    from densedet.data.prepare import dataset_state, format_states

    return format_states([dataset_state(name, root) for name in BENCHMARKS])


def _main(argv: list[str] | None) -> int:
    args = build_parser().parse_args(argv)
    return int(args.run(args))


def main(argv: list[str] | None = None) -> int:
    """Run ``densedet`` with ``argv`` (default: the process's) and return the exit code."""
    return exit_code(lambda: _main(argv))


if __name__ == "__main__":
    sys.exit(main())
