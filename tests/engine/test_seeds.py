"""The spread of results over seeds, and child trainings that are started, found and refused."""

import json
import sys

import pytest

from densedet.engine.seeds import run_seed, spread, spread_table, write_spread
from densedet.errors import ConfigError

# Counts its runs in `count`, and writes results if it is told a number.
CHILD = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
(folder / "count").open("a").write("x")
if sys.argv[2] == "fail":
    sys.exit("first line\\nerror: the lamp is off\\n")
if sys.argv[2] != "nothing":
    results = {"box": {"AP": float(sys.argv[2])}, "provenance": {"seed": 1}}
    (folder / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def run(tmp_path):
    """Run the child in tmp_path/own; return its results."""

    def start(what, overrides=("a=1",)):
        command = [sys.executable, "-c", CHILD, str(tmp_path / "own"), what]
        return run_seed(command, tmp_path / "own", "config.py", overrides)

    return start


def test_figures_over_three_seeds():
    results = [
        {"box": {"AP": ap, "AP50": {"unseen": 2 * ap}}, "images": 4, "name": "x", "fine": True}
        for ap in (1.0, 2.0, 6.0)
    ]
    figures = spread(results)
    # mean 3, deviations -2, -1, 3: variance 14 / 2
    assert figures == {
        "box/AP": {"mean": 3.0, "std": pytest.approx(7**0.5), "min": 1.0, "max": 6.0,
                   "values": [1.0, 2.0, 6.0]},
        "box/AP50/unseen": {"mean": 6.0, "std": pytest.approx(2 * 7**0.5), "min": 2.0,
                            "max": 12.0, "values": [2.0, 4.0, 12.0]},
        "images": {"mean": 4.0, "std": 0.0, "min": 4.0, "max": 4.0, "values": [4, 4, 4]},
    }  # fmt: skip


def test_a_missing_or_undefined_value_leaves_no_mean():
    nothing = {"mean": None, "std": None, "min": None, "max": None}
    assert spread([{"a": 1.0, "b": None}, {"b": 2.0}]) == {
        "a": {**nothing, "values": [1.0, None]},
        "b": {**nothing, "values": [None, 2.0]},
    }


def test_one_seed_has_no_deviation():
    figure = {"mean": 2.0, "std": None, "min": 2.0, "max": 2.0, "values": [2.0]}
    assert spread([{"a": 2.0}]) == {"a": figure}


def test_the_table(tmp_path):
    figures = spread([{"box": {"AP": 1.0}, "n": 12}, {"box": {"AP": 2.5}, "n": None}])
    assert spread_table(figures).splitlines() == [
        "figure  mean    std  min  max  values",
        "box/AP  1.75  1.061    1  2.5  1 2.5",
        "n          -      -    -    -  12 -",
    ]
    write_spread(tmp_path / "new/seeds.json", [3, 5], figures)
    written = json.loads((tmp_path / "new/seeds.json").read_text())
    assert written == {"seeds": [3, 5], "figures": figures}


def test_a_finished_run_is_not_repeated(tmp_path, run):
    assert run("1.5") == {"box": {"AP": 1.5}}
    assert run("9.0") == {"box": {"AP": 1.5}}
    assert (tmp_path / "own/count").read_text() == "x"


def test_a_failed_run_says_why_and_is_tried_again(tmp_path, run):
    with pytest.raises(ConfigError, match=r"own failed with exit code 1: the lamp is off \(see"):
        run("fail")
    assert run("2.0") == {"box": {"AP": 2.0}}
    assert (tmp_path / "own/count").read_text() == "xx"


def test_a_run_without_results(run):
    with pytest.raises(ConfigError, match=r"results\.json cannot be read .* evaluator"):
        run("nothing")


def test_a_folder_of_another_run_is_refused(tmp_path, run):
    run("1.0")
    with pytest.raises(ConfigError, match="another config or other overrides"):
        run("1.0", overrides=("a=2",))
    (tmp_path / "own/seed_run.json").unlink()
    (tmp_path / "own/last_checkpoint").write_text("model_final.pth")
    with pytest.raises(ConfigError, match="another training was there"):
        run("1.0")
    assert (tmp_path / "own/count").read_text() == "x"


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_a_folder_with_another_kind_of_file(tmp_path, run, content):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/seed_run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"seed_run\.json holds a \w+ instead of an object: ano"):
        run("1.0")
    assert not (tmp_path / "own/count").exists()
