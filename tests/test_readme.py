"""Every command and every piece of Python in the READMEs is run, shortened where it says so."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# a small data set and two iterations, so that the commands take seconds
SHORTENED = {
    "tools/prepare_shapes_world.py": ["--train", "16", "--val", "8"],
    "tools/pretrain_clip.py": ["--iterations", "2", "--batch-size", "8", "--scenes", "2"],
    "tools/lazyconfig_train_net.py": ["train.max_iter=2", "lr_multiplier.warmup_iters=1"],
    "tools/run_seeds.py": ["train.max_iter=2", "lr_multiplier.warmup_iters=1", "--seeds", "0", "1"],
}
READMES = [
    ROOT / "README.md",
    ROOT / "projects" / "fvit" / "README.md",
    ROOT / "projects" / "clipself" / "README.md",
    ROOT / "projects" / "denseclip" / "README.md",
    ROOT / "projects" / "icpc" / "README.md",
    ROOT / "projects" / "language_bridge" / "README.md",
    ROOT / "docs" / "guidance.md",
    ROOT / "projects" / "panoptic_fpn" / "README.md",
    ROOT / "docs" / "model_cards" / "densedet-tiny.md",
]


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(), flags=re.DOTALL)


def commands(readme: Path) -> list[list[str]]:
    lines = "\n".join(blocks(readme, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if not line.startswith("#")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a small Shapes World and the models of `make demo`, two iterations each."""
    folder = tmp_path_factory.mktemp("readme")
    run(folder, ["python", "tools/prepare_shapes_world.py"])
    for config in (
        "projects/clipself/configs/quickstart.py",
        "projects/clipself/configs/quickstart_detector.py",
        "projects/panoptic_fpn/configs/quickstart_clipself.py",
    ):
        run(folder, ["python", "tools/lazyconfig_train_net.py", "--config-file", config])
    return folder


def run(folder: Path, command: list[str]) -> None:
    tool = next(word for word in command if word.startswith("tools/"))
    extra = [] if "--eval-only" in command else SHORTENED.get(tool, [])
    words = [str(ROOT / word) if word.startswith("tools/") else word for word in command]
    program = [sys.executable]
    if words.pop(0) == "torchrun":
        program += ["-m", "torch.distributed.run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*program, *words, *extra], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


ALL_COMMANDS = [c for readme in READMES for c in commands(readme) if c and c[0] != "make"]


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=lambda c: " ".join(c)[:90])
def test_command(workspace, command):
    run(workspace, command)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {c[1] for readme in READMES for c in commands(readme) if c and c[0] == "make"}
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)


@pytest.mark.parametrize("number", range(len(blocks(READMES[0], "python"))))
def test_python(workspace, number, monkeypatch):
    monkeypatch.chdir(workspace)
    exec(blocks(READMES[0], "python")[number], {})


def test_linked_files_exist():
    for readme in READMES:
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text()):
            assert target.startswith("https://") or (readme.parent / target).exists(), target
