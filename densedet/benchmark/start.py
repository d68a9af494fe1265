"""``start``: CPU seconds and modules until a tool or an import is ready, against torch's."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from densedet.benchmark.machine import Settings
from densedet.errors import ConfigError

REFERENCE = "import torch"
IMPORTS = {
    "vocabulary": "import densedet.vocabulary",
    "predictor": "from densedet import Predictor",
}

# the help goes to nowhere; the number of modules is the one line of stdout
_RUN = """
import contextlib, io, json, runpy, sys
kind, what = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()):
    if kind == "help":
        sys.argv = [what, "--help"]
        with contextlib.suppress(SystemExit):
            runpy.run_path(what, run_name="__main__")
    else:
        exec(what)
print(json.dumps(len(sys.modules)))
"""


def run_start(settings: Settings, tools: Sequence[Path], imports: Sequence[str]) -> dict[str, Any]:
    """Start processes in turn: ``import torch``, imports of densedet, and ``--help`` of tools.

    Args:
        settings: repeats; there is no warm-up, since every process is a fresh one.
        tools: files.
        imports: names out of `IMPORTS`.

    Returns:
        {"torch", an import, "help FILE": {"cpu_s": median of user and system time, the interpreter
        included, "modules"}, "predictor_above_torch_s", "slowest_help_s"}; the last two are None
        where they were not measured.

    Raises:
        ConfigError: a process failed.
    """
    jobs = {"torch": ("import", REFERENCE)}
    jobs |= {name: ("import", IMPORTS[name]) for name in imports}
    jobs |= {f"help {tool.name}": ("help", str(tool)) for tool in tools}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    modules = {}
    for _ in range(settings.repeats):
        for name, job in jobs.items():
            taken, modules[name] = _start(*job)
            seconds[name].append(taken)
    result: dict[str, Any] = {
        name: {"cpu_s": median(seconds[name]), "modules": modules[name]} for name in jobs
    }
    above = None
    if "predictor" in imports:
        above = result["predictor"]["cpu_s"] - result["torch"]["cpu_s"]
    helps = [median(taken) for name, taken in seconds.items() if name.startswith("help ")]
    return {**result, "predictor_above_torch_s": above, "slowest_help_s": max(helps, default=None)}


def start_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, ``import torch``, their ratio."""
    torch = result["torch"]
    rows = []
    for name, found in result.items():
        if name == "torch" or not isinstance(found, dict):
            continue
        ratio = f"{torch['cpu_s'] / found['cpu_s']:.2f}"
        rows.append([name, *(f"{side['cpu_s']:.2f} s" for side in (found, torch)), ratio])
        rows.append([f"{name}, modules", *(str(side["modules"]) for side in (found, torch)), ""])
    return rows


def _start(kind: str, what: str) -> tuple[float, int]:
    """CPU seconds of a process, and how many modules it has at its end."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _RUN, kind, what],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"{what} failed: {last}")
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return taken, json.loads(done.stdout.splitlines()[-1])
