"""tools/run_seeds.py as a user runs it, on the tiny network of tests/engine."""

import json
from pathlib import Path

import pytest

from densedet.cli import exit_code

ROOT = Path(__file__).resolve().parents[2]
PLAIN = str(ROOT / "tests/engine/configs/tiny_plain.py")


@pytest.fixture
def tool(load_script, capsys, tmp_path, monkeypatch):
    """Run the tool in this process, the trainings in children; return code, stdout and stderr."""
    module = load_script("tools/run_seeds.py")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    data = f"dataloader.register.0.root='{tmp_path}/data'"

    def run(*arguments, config=PLAIN):
        code = exit_code(lambda: module.main(["--config-file", config, *arguments, data]))
        return code, *capsys.readouterr()

    return run


def test_two_seeds_then_one_more(tool, tmp_path):
    out = tmp_path / "out"
    options = ["--output-dir", str(out), "train.max_iter=2"]
    code, said, err = tool("--seeds", "1", "2", *options)
    assert code == 0, err

    one, two = (json.loads((out / f"seed_{s}/results.json").read_text())["tiny"] for s in (1, 2))
    assert one["images"] == two["images"] == 12 and one["score"] != two["score"]
    written = json.loads((out / "seeds.json").read_text())
    assert written["seeds"] == [1, 2]
    figure = written["figures"]["tiny/score"]
    assert figure["values"] == [one["score"], two["score"]]
    assert figure["mean"] == pytest.approx((one["score"] + two["score"]) / 2, rel=1e-12)
    assert figure["std"] == pytest.approx(abs(one["score"] - two["score"]) / 2**0.5, rel=1e-9)
    assert written["figures"]["tiny/undefined"]["mean"] is None
    assert "tiny/score" in said and f"{figure['mean']:.4g}" in said

    before = (out / "seed_2/log.txt").read_bytes()
    code, _, err = tool("--seeds", "2", "train.max_iter=2", "--output-dir", str(out))
    assert code == 0, err
    assert (out / "seed_2/log.txt").read_bytes() == before  # found, not run again
    assert json.loads((out / "seeds.json").read_text())["seeds"] == [2]


def test_a_failing_run_is_one_line(tool, tmp_path):
    out = tmp_path / "out"
    code, _, err = tool("--seeds", "0", "--output-dir", str(out), "train.init_checkpoint=/no.pth")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: the run in {out}/seed_0 failed with exit code 2: ")
    assert "checkpoint /no.pth does not exist" in err
    assert not (out / "seeds.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: --seeds"),
        (["--seeds", "a=1"], "--seeds: give at least one"),
        (["--seeds", "0", "x"], "--seeds: 'x' is not a whole number of at least 0"),
        (["--seeds", "-1"], "--seeds: '-1' is not a whole number of at least 0"),
        (["--seeds", "3", "1", "3"], "--seeds: 3 occurs twice"),
        (["--seeds", "0", "train.seed=1"], "train.seed cannot be overridden here: use --seeds"),
        (["--seeds", "0", "+train.output_dir=x"], "use --output-dir"),
        (["--seeds", "0", "train.max_itr=3"], "did you mean max_iter?"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(tool, tmp_path, arguments, message):
    code, _, err = tool(*arguments)
    assert (code, err.startswith("error: "), err.count("\n")) == (2, True, 1), err
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_missing_config(tool, tmp_path):
    code, _, err = tool("--seeds", "0", config="no/such/config.py")
    assert code == 2 and err.startswith("error: no config 'no/such/config.py'")
