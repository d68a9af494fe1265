"""Every tool says how it is used, and nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = sorted((Path(__file__).parents[2] / "tools").glob("*.py"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What Detectron2's own checkout has: a package named ``tools``."""
    folder = tmp_path_factory.mktemp("detectron2_repo")
    (folder / "tools").mkdir()
    (folder / "tools/__init__.py").write_text("raise ImportError('these are the tools of others')")
    return folder


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_help(tool, monkeypatch, checkout):
    """Also where another package named ``tools`` comes first."""
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{checkout}{os.pathsep}{TOOLS[0].parents[1]}")
    done = subprocess.run([sys.executable, tool, "--help"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {tool.name} ")


def test_no_test_needs_our_tools_to_be_the_package_of_that_name():
    """Tests load them by file, with ``load_script``: Detectron2's checkout may come first."""
    needs = re.compile(r"^\s*(from tools\b.* import |import tools\b)", re.MULTILINE)
    files = Path(__file__).parents[1].rglob("*.py")
    assert [file for file in files if needs.search(file.read_text(encoding="utf-8"))] == []
