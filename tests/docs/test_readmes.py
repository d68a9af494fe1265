"""Every command and every piece of Python in the READMEs is run, shortened where it says so."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


def commands(readme: Path) -> list[str]:
    lines = "\n".join(blocks(readme, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


ALL_COMMANDS = [line for readme in READMES for line in commands(readme)]

TOOL_COMMANDS = [command for command in ALL_COMMANDS if not command.startswith("make ")]


@pytest.mark.parametrize("command", TOOL_COMMANDS, ids=lambda command: command[:90])
def test_command(workspace, run_command, command):
    run_command(workspace, command)


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = {c.split()[1] for c in ALL_COMMANDS if c.startswith("make ")}
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
