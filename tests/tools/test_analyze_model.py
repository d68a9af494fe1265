"""tools/analyze_model.py as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from densedet.cli import exit_code

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "projects/denseclip/configs/ade20k_rn50_denseclip.py"


def run(analyze_model, capsys, *arguments):
    assert analyze_model.main(["--config-file", CONFIG, *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_table_and_json(analyze_model, tmp_path, capsys):
    file = tmp_path / "deep" / "size.json"
    header, *lines = run(analyze_model, capsys, "--json", str(file))
    assert header.split() == ["part", "params", "(M)", "GFLOPs", "at", "1024x1024"]
    assert [line.split()[0] for line in lines] == [
        *("backbone", "guidance", "neck", "head"),
        *("all", "text,"),
    ]
    assert lines[-2].split()[-2:] == ["50.248", "269.63"]
    assert lines[-1].split()[-2:] == ["63.657", "23.26"]
    content = json.loads(file.read_text())
    assert content["config"] == CONFIG and content["size"] == [1024, 1024]
    assert content["params_without_text"] == pytest.approx(50.25e6, abs=0.02e6)
    assert content["params_text"] == pytest.approx(63.657e6, abs=0.001e6)
    assert content["flops"] == pytest.approx(269.8e9, rel=0.005)
    parts = content["parts"].values()
    assert sum(part["params"] for part in parts) == content["params_without_text"]
    assert sum(part["flops"] for part in parts) == content["flops"]


def test_markdown_without_flops(analyze_model, tmp_path, capsys):
    file = tmp_path / "size.json"
    lines = run(analyze_model, capsys, "--params-only", "--markdown", "--json", str(file))
    assert lines[:2] == ["| part | params (M) | GFLOPs |", "| --- | --- | --- |"]
    assert lines[2] == "| backbone | 38.741 | - |"
    content = json.loads(file.read_text())
    assert content["flops"] is None and content["size"] is None
    assert content["params_without_text"] == pytest.approx(50.25e6, abs=0.02e6)


def test_text_for_every_image(analyze_model, capsys):
    """Its cost is a part, and the line of the kept text has parameters alone."""
    assert analyze_model.main(["--config-file", "projects/icpc/configs/quickstart.py"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (every,) = (line for line in lines if line[:3] == ["text,", "every", "image"])
    assert every[3] == "0.000" and float(every[4]) > 0
    assert lines[-1][:4] == ["text,", "once", "a", "vocabulary"]
    assert float(lines[-1][4]) > 0 and lines[-1][5] == "-"


def test_size_and_overrides(analyze_model, capsys):
    *_, total, _text = run(
        analyze_model,
        capsys,
        "--size",
        "512",
        "512",
        "model.sem_seg_head.conv_dims=128",
        "clip.grid=7",
    )
    # head: 7 convolutions, 4 of them from 256 channels, their norms, and the classifier
    head = 4 * 256 * 128 * 9 + 3 * 128 * 128 * 9 + 7 * 256 + 128 * 150 + 150
    grid = (16 * 16 - 7 * 7) * 2048
    assert float(total.split()[-2]) == pytest.approx(50.248 - 4.171 + (head - grid) / 1e6, abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no.py"], "no config 'no.py'"),
        (["--config-file", CONFIG, "--size", "12"], "expected 2 arguments"),
        (["--config-file", CONFIG, "--size", "0", "9"], "both must be at least 1"),
        (["--config-file", CONFIG, "model.windo=3"], "did you mean window"),
        (["--config-file", "projects/clipself/configs/quickstart.py"], "CLIPSelf is no segmentor"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(
    analyze_model, tmp_path, capsys, arguments, message
):
    extra = ["--json", str(tmp_path / "out.json")]
    assert exit_code(lambda: analyze_model.main([*arguments, *extra])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_as_a_user_runs_it(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tools/analyze_model.py", "--config-file", CONFIG, "--params-only"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "50.248" in done.stdout
