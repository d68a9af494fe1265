"""tools/benchmark.py on tiny sizes; how fast anything is, is not asserted."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densedet.cli import exit_code

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/benchmarks.md"
METRICS = ("panoptic", "coco", "lvis")
QUICK = ["--threads", "1", "--repeats", "2", "--warmup", "1"]
ONCE = ["--threads", "1", "--repeats", "1"]
WITHOUT_A_DEVICE = ("evaluate", "segment", "start", "predict", "draw")
ON_THE_CPU = ["--device", "cpu"]
TINY = ["--model", "densedet-tiny", "--image-size", "64", "--images", "2", "--workers", "0"]
QUICKSTART = "projects/denseclip/configs/quickstart.py"
SMALL = {
    "pool": ["--channels", "8", "--grid", "8", "--split", "2"],
    "crops": ["--images", "2", "--height", "40", "--width", "56", "--image-size", "64"],
    "guidance": ["--config-file", QUICKSTART, "--image-size", "64"],
    "text": ["--model", "densedet-tiny", "--batch", "1"],
    "distill": [*TINY, "--batch", "1", "--steps", "1", "--precision", "fp32"],
    "evaluate": ["--images", "3"],
    "start": ["--cases", "help", "vocabulary"],
    "towers": ["--image-sizes", "32", "64", "--width", "32", "--heads", "4"],
    "draw": ["--detections", "3", "--height", "40", "--width", "50"],
    "segment": ["--classes", "3", "20", "--height", "40", "--width", "50"],
    "predict": ["--kept", "3"],
}


def page_commands():
    """The commands of docs/benchmarks.md, as lists of words."""
    text = "".join(re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]


@pytest.fixture(autouse=True)
def _threads():
    """The tool sets the number of threads; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check_pool(found):
    assert found["forward"]["speedup"] > 0 and found["forward_backward"]["speedup"] > 0
    assert found["boxes"] == 8 and found["largest_difference"] < 0.05


def check_crops(found):
    assert found["loader"]["speedup"] > 0 and found["device_ms"]["ours"] > 0
    assert found["largest_difference"] <= 1


def check_distill(found):
    assert found["speedup"] > 0 and found["losses_agree"] is True
    assert found["matrix_share"]["ours"] > 0 and found["images_per_s"]["ours"] > 0
    assert min(found["peak_memory"].values()) > 1e8


def check_memory(found):
    assert -100 < found["reduction"] < 100 and found["batch"] == 1


def check_guidance(found):
    assert found["speedup"] > 0 and len(found["speedup_quartiles"]) == 2
    assert found["largest_difference"] <= 1e-5 * found["largest_logit"]


def check_text(found):
    assert 0 < found["macs_ratio"] <= 0.4 and found["time_ratio"] > 0
    assert found["largest_difference"] <= 0.1 * found["largest_embedding"]


def check_segment(found):
    assert found.keys() == {"3", "20"}
    for sizes in found.values():
        assert sizes["ratio_full"] > 0 and sizes["ratio_einsum"] > 0
        assert sizes["peak_mib"] >= 0 and sizes["full_peak_mib"] >= 0
        assert sizes["different_labels"] == 0 and sizes["largest_difference"] < 1e-5


def check_predict(found):
    assert found["speedup"] > 0 and found["results_agree"] is True
    assert found["detections"] == 3 and found["reference_detections"] == 100
    for side in ("ours", "reference"):
        assert min(found["stages"][side].values()) > 0
        shares = found["shares"][side]
        assert sum(shares.values()) - shares["drawing"] == pytest.approx(1)


def check_start(found):
    helps = {name: case for name, case in found.items() if name.startswith("help ")}
    tools = {file.name for file in (ROOT / "tools").glob("*.py")}
    assert {name.removeprefix("help ") for name in helps} == tools
    assert max(case["modules"] for case in helps.values()) < found["torch"]["modules"] / 3
    assert found["slowest_help_s"] == max(case["cpu_s"] for case in helps.values())
    assert 0 < found["vocabulary"]["cpu_s"] < found["torch"]["cpu_s"]
    assert found["predictor_above_torch_s"] is None


def check_towers(found):
    assert [size["tokens"] for size in found.values()] == [5, 17] and list(found) == ["32", "64"]
    for size in found.values():
        assert size["speedup"] > 0 and size["largest_difference"] < 1e-5
        assert min(size["peak_mib"].values()) >= 0


def check_evaluation(found):
    assert found["speedup"] > 0 and len(found["speedup_quartiles"]) == 2
    assert found["largest_difference"] < 1e-8 and found["images"] == 3


def check_draw(found):
    assert found["detectron2"]["speedup"] > 0 and found["fast"]["speedup"] > 0
    assert found["different_pixels"] == 0 and found["detections"] == 3


CHECKS = {
    "draw": check_draw,
    "pool": check_pool,
    "crops": check_crops,
    "distill": check_distill,
    "memory": check_memory,
    "guidance": check_guidance,
    "prefix_sharing": check_text,
    "predict": check_predict,
    "segment": check_segment,
    "start": check_start,
    "towers": check_towers,
    **dict.fromkeys(METRICS, check_evaluation),
}


def names_in_json(command):
    """Under which a benchmark's figures stand."""
    if command[2] == "evaluate":
        return list(METRICS)
    name = "memory" if "--memory" in command else command[2]
    return ["prefix_sharing" if name == "text" else name]


@pytest.mark.parametrize("command", page_commands(), ids=" ".join)
def test_commands_of_the_page(benchmark, tmp_path, capsys, command):
    """Each as it stands in docs/benchmarks.md, then made small, on the CPU."""
    assert command[:2] == ["python", "tools/benchmark.py"]
    file = tmp_path / "figures" / "out.json"
    device = ON_THE_CPU if command[2] not in WITHOUT_A_DEVICE else []
    quick = ONCE if command[2] == "start" else QUICK
    arguments = [*command[2:], *SMALL[command[2]], *device, *quick, "--json", str(file)]
    assert benchmark.main(arguments) == 0 and benchmark.METRICS == METRICS
    names = names_in_json(command)
    machine_line, _note, header, *lines = capsys.readouterr().out.splitlines()
    assert machine_line.startswith(f"{', '.join(names)}: ") and ", 1 threads, " in machine_line
    assert header.split() == ["what", "ours", "reference", "ratio"] and lines
    content = json.loads(file.read_text())
    assert set(content) == {"machine", *names}
    assert content["machine"]["threads"] == 1 and content["machine"]["device"] == "cpu"
    for name in names:
        CHECKS[name](content[name])


def test_every_benchmark_is_on_the_page():
    assert {command[2] for command in page_commands()} == set(SMALL)
    assert any("--memory" in command for command in page_commands())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: benchmark"),
        (["pol"], "invalid choice: 'pol'"),
        (["pool", "--repeats", "0"], "--repeats 0 must be at least 1"),
        (["pool", "--grid", "-4"], "--grid -4 must be at least 1"),
        (["crops", "--precision", "fp8"], "invalid choice: 'fp8'"),
        (["crops", "--images", "0"], "--images 0 must be at least 1"),
        (["distill", "--device", "cpu", "--precision", "fp16"], "fp16 needs a CUDA device"),
        (["distill", "--model", "no-such-clip"], "no CLIP architecture named 'no-such-clip'"),
        (["distill", "--model", "densedet-tiny", "--image-size", "1"], "no multiple of 8"),
        (["crops", "--height", "9"], "--height 9 must be at least 10"),
        (["distill", "--workers", "2"], "--steps 1 must be a multiple of --workers 2"),
        (["distill", "--batch", "0"], "--batch 0 must be at least 1"),
        (["guidance", "--images", "0"], "--images 0 must be at least 1"),
        (["guidance", "--config-file", "no.py"], "no config 'no.py'"),
        (["text", "--batch", "0"], "--batch 0 must be at least 1"),
        (["text", "--model", "no-such-clip"], "no CLIP architecture named 'no-such-clip'"),
        (["text", "--vocabulary", "no_list"], "no_list"),
        (["evaluate", "--metrics", "pq"], "invalid choice: 'pq'"),
        (["evaluate", "--metrics", "coco", "--images", "0"], "--images 0 must be at least 1"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(benchmark, tmp_path, capsys, arguments, message):
    extra = ["--json", str(tmp_path / "out.json")] if arguments else []
    assert exit_code(lambda: benchmark.main([*arguments, *extra])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.iterdir())


def test_as_a_user_runs_it(tmp_path):
    """A file that cannot be written is refused before anything is measured."""
    (tmp_path / "file").write_text("mine")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/benchmark.py", "pool", "--json", "file/out.json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"
