"""A folder in which a user follows the documentation."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# a small data set and two iterations, so that the commands take seconds
TRAINING = ["train.max_iter=2", "lr_multiplier.warmup_iters=1"]
SHORTENED = {
    "tools/prepare_shapes_world.py": ["--train", "16", "--val", "12"],
    "tools/pretrain_clip.py": ["--iterations", "2", "--batch-size", "8", "--scenes", "2"],
    "tools/lazyconfig_train_net.py": TRAINING,
    "tools/run_seeds.py": [*TRAINING, "--seeds", "0", "1"],
}
PROGRAMS = {
    "python": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run"],
}


def run(folder, command):
    """Run a command with a tool in a folder, shortened unless it only evaluates."""
    name, *words = shlex.split(command.replace("\\\n", " "), comments=True)
    tool = next(word for word in words if word.startswith("tools/"))
    words = [str(ROOT / word) if word == tool else word for word in words]
    extra = [] if "--eval-only" in words else SHORTENED.get(tool, [])
    done = subprocess.run(
        [*PROGRAMS[name], *words, *extra],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """A small Shapes World and the models of `make demo`, two iterations each."""
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
    """Runs a command of a page in a folder; returns what it prints."""
    return run
