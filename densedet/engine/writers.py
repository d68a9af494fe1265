"""Where the scalars of a training go: console with ETA, JSON lines, TensorBoard."""

import json
import logging
import os
from pathlib import Path

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)

from densedet.files import write_text

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"


def build_writers(output_dir: str, start_iter: int, max_iter: int) -> list[EventWriter]:
    """Return the writers of the main process.

    ``{output_dir}/metrics.json`` has one JSON object a line. What it or TensorBoard holds of
    iterations that are run again is dropped, so that a resumed training leaves one curve.
    TensorBoard is left out, with a log message, where it is not installed.
    """
    file = Path(output_dir) / METRICS_FILE
    prepare_metrics(file, start_iter)
    writers = [CommonMetricPrinter(max_iter), JSONWriter(str(file))]
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        logger.info("No TensorBoard events are written: %s (pip install tensorboard)", error)
    else:
        purge = start_iter if start_iter > 0 else None
        writers.append(TensorboardXWriter(output_dir, purge_step=purge))
    return writers


def prepare_metrics(file: Path, start_iter: int) -> None:
    """Keep the records before ``start_iter``.

    A training from 0 moves an older file to ``.old.json``.

    Raises:
        OutputError: the file cannot be written.
    """
    if not file.exists():
        return
    if start_iter == 0:
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
