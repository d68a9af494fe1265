"""Where a training says what: the console of rank 0, and a log file of each rank."""

import logging
import sys
import threading
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from densedet.errors import Terminated
from densedet.exits import one_line
from densedet.files import DISK_FULL, writing

_NAMES = ("densedet", "detectron2", "fvcore")
_FORMAT = "[%(asctime)s] %(name)s %(levelname)s: %(message)s"  # Detectron2's
_FILE_ONLY = "densedet_file_only"


class LogFile(logging.FileHandler):
    """A log file; where it cannot be written, one line on stderr says so, and the job goes on."""

    def __init__(self, file: Path) -> None:
        with writing(file):
            super().__init__(file, encoding="utf-8")
        self.setFormatter(logging.Formatter(_FORMAT, datefmt="%m/%d %H:%M:%S"))
        self._complained = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, a name of logging
        """Complain of the disk once; what else fails is a defect."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._complained:
            self._complained = True
            sys.stderr.write(f"warning: {self.baseFilename} ends here: {error.strerror}\n")


def setup_logging(output_dir: str) -> None:
    """Log densedet, Detectron2 and fvcore to the console (rank 0) and ``{output_dir}/log.txt``.

    The other ranks write ``log.txt.rank1`` and so on. For the tools: the library itself only logs.
    A second call replaces the handlers of the first.

    Raises:
        OutputError: the log file cannot be made.
    """
    forget = getattr(setup_logger, "cache_clear", None)  # it ignores a call with known arguments
    if forget is not None:
        forget()
    file = LogFile(log_file(output_dir, comm.get_rank()))
    for name in _NAMES:
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
            if isinstance(handler, LogFile):
                handler.close()
        setup_logger(distributed_rank=comm.get_rank(), name=name)
        for handler in log.handlers:
            handler.addFilter(lambda record: not hasattr(record, _FILE_ONLY))
        log.addHandler(file)
    threading.excepthook = _without_full_disk


def log_file(output_dir: str, rank: int) -> Path:
    """The log file of a process."""
    return Path(output_dir, f"log.txt.rank{rank}" if rank else "log.txt")


def log_end(error: BaseException) -> None:
    """Write why the job ends into the log file alone: the tool says it on stderr."""
    text = one_line(error)
    if isinstance(error, Terminated):
        text = f"terminated by SIGTERM{text and f': {text}'}"
    logging.getLogger(__name__).error("%s", text, extra={_FILE_ONLY: True})


def is_full(error: BaseException | None) -> bool:
    """Whether an error is that of a full disk."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def _without_full_disk(args: Any) -> None:
    """As ``threading.excepthook``; TensorBoard's thread has its error raised by the next call."""
    if not is_full(args.exc_value):
        threading.__excepthook__(args)
