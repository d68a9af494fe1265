"""Every tool says how it is used, and nothing else, before it imports anything that takes long."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from densedet.data.benchmark_names import NAMES
from densedet.data.benchmarks import BENCHMARKS
from densedet.engine.options import PRECISIONS
from densedet.engine.precision import PRECISION_NAMES

ROOT = Path(__file__).parents[2]
TOOLS = sorted((ROOT / "tools").glob("*.py"))
SLOW = [  # to import; the heaviest of what densedet stands on
    *("PIL", "cv2", "detectron2", "fvcore", "gradio", "hydra", "huggingface_hub", "matplotlib"),
    *("numpy", "omegaconf", "open_clip", "pycocotools", "scipy", "timm", "torch", "torchvision"),
    *("tqdm", "triton"),
]
USES = {"help": ["--help"], "wrong use": ["--no-such-option"], "version": ["--version"]}
PASSES_ON = "make_web_picture"  # what it does not know are options of web_demo.py, which it starts

# Runs each file as the program that it is, all in one process, and says what each imported that was
# not there before.
RUN = """
import contextlib, io, json, runpy, sys
files, uses, slow, passes_on = json.loads(sys.argv[1])
found = {}
for file in files:
    for use, arguments in uses.items():
        if use != "help" and passes_on in file:
            continue
        before = set(sys.modules)
        sys.argv = [file, *arguments]
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(file, run_name="__main__")
            except SystemExit as error:
                code = error.code
        imported = sorted({*slow} & (set(sys.modules) - before))
        found[f"{file} {use}"] = [code, out.getvalue(), err.getvalue(), imported]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What each tool and the command ``densedet`` say to each use.

    A package named ``tools`` comes first, as Detectron2's own checkout has one.
    """
    folder = tmp_path_factory.mktemp("detectron2_repo")
    (folder / "tools").mkdir()
    (folder / "tools/__init__.py").write_text("raise ImportError('these are the tools of others')")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    environment["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
    files = [str(file) for file in (*TOOLS, ROOT / "densedet/cli.py")]
    job = json.dumps([files, USES, SLOW, PASSES_ON])
    done = subprocess.run(
        [sys.executable, "-c", RUN, job], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_help(tool, said):
    """The usage, without a warning, and without torch."""
    code, out, err, imported = said[f"{tool} help"]
    assert (code, err, imported) == (0, "", [])
    assert out.startswith(f"usage: {tool.name} ")


@pytest.mark.parametrize(
    "tool", [tool for tool in TOOLS if tool.stem != PASSES_ON], ids=lambda path: path.stem
)
def test_wrong_use(tool, said):
    code, out, err, imported = said[f"{tool} wrong use"]
    assert (code, out, imported) == (2, "", [])
    assert len(err.splitlines()) == 1 or tool.stem == "install_detectron2"  # argparse alone


def test_version(said):
    code, out, _, imported = said[f"{ROOT / 'densedet/cli.py'} version"]
    assert (code, imported) == (0, []) and re.fullmatch(r"densedet \d+\.\d+\.\d+\S*\n", out)


def test_what_the_parsers_name_is_what_there_is():
    """Their choices stand in modules that import nothing slow."""
    assert tuple(BENCHMARKS) == NAMES and tuple(PRECISIONS) == PRECISION_NAMES


def test_no_test_needs_our_tools_to_be_the_package_of_that_name():
    """Tests load them by file, with ``load_script``: Detectron2's checkout may come first."""
    needs = re.compile(r"^\s*(from tools\b.* import |import tools\b)", re.MULTILINE)
    files = Path(__file__).parents[1].rglob("*.py")
    assert [file for file in files if needs.search(file.read_text(encoding="utf-8"))] == []
