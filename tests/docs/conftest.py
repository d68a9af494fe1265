"""A folder in which a user follows the documentation."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# a small data set and two iterations, so that the commands take seconds
SHORTENED = {
    "tools/prepare_shapes_world.py": ["--train", "16", "--val", "12"],
    "tools/lazyconfig_train_net.py": ["train.max_iter=2", "lr_multiplier.warmup_iters=1"],
    "tools/run_seeds.py": ["train.max_iter=2", "lr_multiplier.warmup_iters=1"],
}


def run(folder, command):
    """Run ``python tools/...`` in a folder, shortened unless it only evaluates."""
    program, tool, *arguments = shlex.split(command.replace("\\\n", " "), comments=True)
    assert program == "python" and (ROOT / tool).is_file(), command
    extra = [] if "--eval-only" in arguments else SHORTENED.get(tool, [])
    done = subprocess.run(
        [sys.executable, str(ROOT / tool), *arguments, *extra],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A small Shapes World and the models of `make demo`, two iterations each; and ``run``."""
    folder = tmp_path_factory.mktemp("docs")
    run(folder, "python tools/prepare_shapes_world.py")
    for config in (
        "projects/clipself/configs/quickstart.py",
        "projects/clipself/configs/quickstart_detector.py",
        "projects/panoptic_fpn/configs/quickstart_clipself.py",
    ):
        run(folder, f"python tools/lazyconfig_train_net.py --config-file {config}")
    return folder


@pytest.fixture(scope="session")
def run_command():
    """Runs a command of a page in a folder."""
    return run
