"""Where the scalars of a training go: console with ETA, JSON lines, TensorBoard."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)

from densedet.errors import OutputError
from densedet.files import write_text, writing

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def build_writers(output_dir: str, start_iter: int, max_iter: int) -> list[EventWriter]:
    """Return the writers of the main process.

    ``{output_dir}/metrics.json`` has one JSON object a line. What it or TensorBoard holds of
    iterations that are run again is dropped, so that a resumed training leaves one curve.
    TensorBoard is left out, with a log message, where it is not installed.

    Raises:
        OutputError: a file cannot be written; their ``write`` and ``close`` raise it too.
    """
    file = Path(output_dir) / METRICS_FILE
    prepare_metrics(file, start_iter)
    writers = [CommonMetricPrinter(max_iter), MetricsWriter(str(file))]
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        logger.info("No TensorBoard events are written: %s (pip install tensorboard)", error)
    else:
        purge = start_iter if start_iter > 0 else None
        writers.append(EventsWriter(output_dir, purge_step=purge))
    return writers


class MetricsWriter(JSONWriter):
    """Detectron2's writer; the error of a full disk names the file, once."""

    def __init__(self, json_file: str) -> None:
        with writing(json_file):
            super().__init__(json_file)

    def write(self) -> None:
        """Append what is new; nothing after an error."""
        if self._file_handle.closed:
            return
        try:
            with writing(self._file_handle.name):
                super().write()
        except OutputError:
            with suppress(OSError):  # what it still holds, which would be tried again
                self._file_handle.close()
            raise


class EventsWriter(TensorboardXWriter):
    """Detectron2's writer; the error of a full disk names the folder."""

    def write(self) -> None:
        """Write what is new."""
        with writing(Path(self._writer_args["log_dir"]) / "events.*"):
            super().write()

    def close(self) -> None:
        """Write what is left."""
        with writing(Path(self._writer_args["log_dir"]) / "events.*"):
            super().close()


def prepare_metrics(file: Path, start_iter: int) -> None:
    """Keep the records before ``start_iter``.

    A training from 0 moves an older file to ``.old.json``.

    Raises:
        OutputError: the file cannot be written.
    """
    if not file.exists():
        return
    if start_iter == 0:
        with writing(file):
            os.replace(file, file.with_suffix(".old.json"))
        return
    kept = [
        line for line in file.read_text(encoding="utf-8").splitlines() if _before(line, start_iter)
    ]
    write_text(file, "".join(f"{line}\n" for line in kept))


def _before(line: str, start_iter: int) -> bool:
    try:
        record = json.loads(line)
    except ValueError:  # the last line of a process that was killed
        return False
    return isinstance(record, dict) and record.get("iteration", start_iter) < start_iter
