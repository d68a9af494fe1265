"""The ``densedet`` command, and what every command line of this project shares.

Exit codes: 0 success, 1 the command ran and found a problem (``densedet doctor``; a process of the
job that is gone), 2 wrong use or wrong input (one line ``error: ...`` on stderr), 130 interrupted,
143 terminated (SIGTERM).
"""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from densedet import __version__, compat
from densedet.errors import ConfigError
from densedet.exits import EXIT_INTERRUPTED, EXIT_USAGE, exit_code, raising_on_sigterm

__all__ = ["EXIT_INTERRUPTED", "EXIT_USAGE", "ToolParser", "exit_code", "main", "run_tool"]
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
