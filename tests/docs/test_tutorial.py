"""docs/tutorial.ipynb runs, and its stored outputs are those of a run."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs/tutorial.ipynb"


def code_cells(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    return "".join(
        "".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream"
    )


def pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell["outputs"])


@pytest.fixture(scope="module")
def executed(workspace, tmp_path_factory):
    """The notebook after a run in a folder that has what `make demo` leaves."""
    (workspace / "docs").mkdir()
    shutil.copy(NOTEBOOK, workspace / "docs")
    output = tmp_path_factory.mktemp("executed")
    command = ["nbconvert", "--to", "notebook", "--execute", "docs/tutorial.ipynb"]
    done = subprocess.run(
        [sys.executable, "-m", *command, "--output-dir", str(output)],
        cwd=workspace,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return code_cells(output / NOTEBOOK.name)


def test_it_runs(executed, workspace):
    assert len(executed) == 10
    assert [cell["execution_count"] for cell in executed] == list(range(1, 11))
    assert [pictures(cell) for cell in executed] == [0, 0, 0, 0, 1, 0, 1, 0, 0, 1]
    assert "ball   thing  ball, blue ball" in printed(executed[1])
    labels = re.findall(r"^(.+?) +\d\.\d\d \[", printed(executed[7]), flags=re.MULTILINE)
    assert labels and set(labels) <= {"my balls", "my cones", "the rest"}
    losses = re.fullmatch(r"loss (.*) -> (.*)\n", printed(executed[8]))
    assert float(losses[2]) < float(losses[1])
    assert (workspace / "output/tutorial/clipself.safetensors").is_file()


def test_what_needs_no_training_is_stored_as_it_runs(executed):
    stored = code_cells(NOTEBOOK)
    assert [cell["source"] for cell in stored] == [cell["source"] for cell in executed]
    assert [pictures(cell) for cell in stored] == [pictures(cell) for cell in executed]
    for number in (1, 2, 3):
        assert printed(stored[number]) == printed(executed[number])


def test_the_stored_outputs_are_small_and_say_nothing_of_the_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert not re.search(r"/(home|root|work|tmp|usr)/", text)
    kinds = {o["output_type"] for cell in code_cells(NOTEBOOK) for o in cell["outputs"]}
    assert kinds == {"stream", "display_data"}


def test_nothing_is_warned_of(executed):
    for cell in (*executed, *code_cells(NOTEBOOK)):
        assert "stderr" not in [output.get("name") for output in cell["outputs"]]
