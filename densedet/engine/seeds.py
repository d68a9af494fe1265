"""The same training under several seeds, and the spread of its results."""

import json
import logging
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densedet.engine.testing import RESULTS_FILE
from densedet.errors import ConfigError
from densedet.evaluation.results import PROVENANCE, leaves
from densedet.files import write_text

logger = logging.getLogger(__name__)

RUN_FILE = "seed_run.json"
CONSOLE_FILE = "console.txt"


def run_seed(
    command: Sequence[str], folder: Path, config_file: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """Run one training in a child process, or find that it is done.

    ``{folder}/seed_run.json`` remembers what was run and that it came to its end; what the child
    says goes to ``{folder}/console.txt``.

    Args:
        command: program and arguments; it trains in ``folder``, resuming what is there.
        folder: the training's output folder.
        config_file, overrides: what the command trains, to tell it from another one.

    Returns:
        The figures of ``{folder}/results.json``.

    Raises:
        ConfigError: the folder belongs to another training, the child failed, or it wrote no
            results.
        OutputError: ``seed_run.json`` cannot be written.
    """
    record = {"config_file": config_file, "overrides": list(overrides), "finished": False}
    if _is_finished(folder, record):
        logger.info("%s: finished already", folder)
        return _results(folder)
    _write_json(folder / RUN_FILE, record)
    with open(folder / CONSOLE_FILE, "ab") as console:
        code = subprocess.run(command, stdout=console, stderr=subprocess.STDOUT).returncode
    if code:
        lines = (folder / CONSOLE_FILE).read_text("utf-8", "replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        raise ConfigError(
            f"the run in {folder} failed with exit code {code}: {last.removeprefix('error: ')} "
            f"(see {CONSOLE_FILE} there)"
        )
    results = _results(folder)
    _write_json(folder / RUN_FILE, {**record, "finished": True})
    return results


def _is_finished(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether this very training finished in ``folder``; raises if another one was there."""
    file = folder / RUN_FILE
    if not file.is_file() and not (folder / "last_checkpoint").exists():
        return False
    found = _read_json(file, "another training was there; choose another output folder")
    if {**record, "finished": found.get("finished")} != found:
        raise ConfigError(
            f"{folder} holds a training with another config or other overrides (see {RUN_FILE} "
            "there); choose another output folder, or delete this one"
        )
    return bool(found["finished"])


def _results(folder: Path) -> dict[str, Any]:
    file = folder / RESULTS_FILE
    content = _read_json(file, "the config must have dataloader.test and evaluator")
    return {name: figures for name, figures in content.items() if name != PROVENANCE}


def _read_json(file: Path, remedy: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): {remedy}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds a {type(content).__name__} instead of an object: {remedy}")
    return content


def _write_json(file: Path, content: Any) -> None:
    write_text(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def spread(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean, standard deviation, minimum and maximum of every figure over several results.

    Args:
        results: contents of ``results.json``, nested mappings whose leaves are numbers or null.

    Returns:
        "task/figure" -> {"mean", "std", "min", "max", "values"}. ``std`` is that of a sample
        (n - 1), null for one result; the first four are null where a value is missing or null.
    """
    tables = [dict(leaves(result)) for result in results]
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: _statistics([table.get(name) for table in tables]) for name in names}


def _statistics(values: list[float | None]) -> dict[str, Any]:
    numbers = [float(value) for value in values if value is not None]
    if len(numbers) < len(values):
        return {"mean": None, "std": None, "min": None, "max": None, "values": values}
    return {
        "mean": statistics.fmean(numbers),
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "min": min(numbers),
        "max": max(numbers),
        "values": values,
    }


def write_spread(
    file: Path, seeds: Sequence[int], figures: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write ``{"seeds": [...], "figures": {...}}``, with the result of :func:`spread`.

    Raises:
        OutputError: the file cannot be written.
    """
    _write_json(file, {"seeds": list(seeds), "figures": figures})


def spread_table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The result of :func:`spread` as lines of text, one a figure."""
    rows = [["figure", "mean", "std", "min", "max", "values"]]
    for name, row in figures.items():
        cells = [_text(row[key]) for key in ("mean", "std", "min", "max")]
        rows.append([name, *cells, " ".join(map(_text, row["values"]))])
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:5], widths[1:]), row[5]])
        for row in rows
    )


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
