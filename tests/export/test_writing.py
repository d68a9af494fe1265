"""Files: parity of torch programs and ONNX with the eager parts, and what they say."""

import json
import os
import re
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch

from densedet import __version__
from densedet.clip.checkpoints import write_weights
from densedet.errors import ConfigError, InstallationError, OutputError
from densedet.export import describe, make_part, trace, write_onnx, write_program, writing
from densedet.modeling.guidance import PromptedTextEncoder
from densedet.weights import weights_digest

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# case -> pictures (batch, height, width) that the file takes; the first have the tower's own size
SIZES = {
    "dense vit": [(1, 48, 48), (3, 24, 40)],
    "dense eva": [(1, 32, 32), (2, 40, 64)],
    "dense resnet": [(1, 64, 64), (2, 160, 96)],
    "semantic denseclip": [(1, 160, 160), (2, 96, 64)],
    "semantic zero-shot": [(1, 64, 96), (3, 64, 96)],
    "detector": [(1, 160, 192)],
}
FIXED = {"semantic zero-shot": (64, 96), "detector": (160, 192)}


@pytest.fixture(scope="module")
def parts(make_model, make_detector, make_dense, words):
    """A function from a case to its part, made once."""
    made = {}

    def make(case):
        kind, _, name = case.partition(" ")
        if kind == "dense":
            return make_dense(name)
        if kind == "detector":
            return make_part(make_detector(ensemble=True), kind, FIXED[case])
        model = make_model("denseclip" if name == "denseclip" else "zero_shot")
        if name == "zero-shot":
            model.set_vocabulary(words)
        return make_part(model, kind, FIXED.get(case))

    def part(case):
        if case not in made:
            made[case] = make(case)
        return made[case]

    return part


@pytest.fixture(scope="module")
def files(parts, tmp_path_factory):
    """A function from a case to its .pt2 and .onnx files, traced once."""
    folder, written = tmp_path_factory.mktemp("export"), {}

    def write(case):
        if case not in written:
            part, stem = parts(case), case.replace(" ", "_")
            program = trace(part, FIXED.get(case))
            metadata = describe(part, FIXED.get(case), part.state_dict())
            write_program(program, folder / f"{stem}.pt2", metadata)
            write_onnx(program, folder / f"{stem}.onnx", metadata)
            written[case] = (folder / f"{stem}.pt2", folder / f"{stem}.onnx")
        return written[case]

    return write


def compare(part, run, pictures, case):
    for number, size in enumerate(SIZES[case]):
        images = pictures(*size, seed=number)
        expected, found = part(images), run(images)
        assert len(found) == len(expected) == len(part.outputs)
        for own, other in zip(found, expected, strict=True):
            assert other.std() > 0
            torch.testing.assert_close(own, other, **CLOSE)


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("case", SIZES)
def test_a_program_is_the_part(parts, files, pictures, case):
    program = torch.export.load(files(case)[0])
    compare(parts(case), program.module(), pictures, case)


@pytest.mark.parametrize("case", SIZES)
def test_onnx_is_the_part(parts, files, pictures, case):
    part, session = parts(case), session_of(files(case)[1])
    assert [x.name for x in session.get_inputs()] == ["images"]
    assert [x.name for x in session.get_outputs()] == list(part.outputs)

    def run(images):
        return [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]

    compare(part, run, pictures, case)


@pytest.mark.parametrize("case", ["dense vit", "semantic zero-shot", "detector"])
def test_the_description(parts, files, words, case):
    program, model = files(case)
    extra = {writing.PROGRAM_METADATA: ""}
    torch.export.load(program, extra_files=extra)
    metadata = json.loads(extra[writing.PROGRAM_METADATA])
    properties = {p.key: p.value for p in onnx.load(model).metadata_props}
    assert json.loads(properties[writing.ONNX_METADATA]) == metadata
    part = parts(case)
    assert metadata["labels"] == list(words.labels) and metadata["part"] == part.kind
    assert metadata["vocabulary_sha256"] == part.vocabulary.digest()
    assert metadata["weights_sha256"] == weights_digest(part.state_dict())
    assert metadata["versions"]["densedet"] == __version__
    assert metadata["settings"] == part.settings()
    image = metadata["input"]
    assert image["multiple_of"] == part.multiple and image["batch"] == (
        1 if case == "detector" else None
    )
    assert image["size"] == (list(FIXED[case]) if case in FIXED else None)
    assert image["sides"] == (None if case in FIXED else [2 * part.multiple, 1024 * part.multiple])
    assert image["pixel_mean"] == pytest.approx(part.pixel_mean.flatten().tolist())


def test_a_fixed_size_refuses_others(files, pictures):
    session = session_of(files("semantic zero-shot")[1])
    with pytest.raises(Exception, match="invalid dimensions"):
        session.run(None, {"images": pictures(1, 96, 64).numpy()})


@pytest.mark.parametrize(
    ("case", "library", "shapes"),
    [
        ("dense vit", "torch", "[(1, 128, 2, 3), (1, 3, 2, 3)]"),
        ("detector", "torchvision", "[(60, 4), (60, 3), (60, 14, 14)]"),
    ],
)
def test_a_program_needs_no_densedet(files, case, library, shapes):
    """No densedet, no open_clip and no Detectron2 where it runs."""
    size = FIXED.get(case, (16, 24))
    code = (
        "import sys\n"
        "for name in ('densedet', 'open_clip', 'detectron2', 'timm'): sys.modules[name] = None\n"
        f"import torch, {library}\n"
        f"program = torch.export.load({str(files(case)[0])!r})\n"
        f"print([tuple(x.shape) for x in program.module()(torch.zeros(1, 3, *{size}))])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.splitlines()[-1:] == [shapes], done.stderr


@pytest.mark.parametrize("case", ["semantic zero-shot", "semantic denseclip"])
def test_the_files_have_no_text_tower(make_model, files, case):
    """No tensor of it, under whatever name; the words are vectors."""
    if case == "semantic denseclip":
        (tower,) = [m for m in make_model("denseclip").modules() if is_prompted(m)]
    else:
        tower = make_model("zero_shot").embedder.encoder
    weights = {name: tensor for name, tensor in tower.state_dict().items() if tensor.numel() > 256}
    assert any("token_embedding" in name for name in weights)
    program = torch.export.load(files(case)[0])
    constants = {n: v for n, v in program.constants.items() if isinstance(v, torch.Tensor)}
    initializers = {
        value.name: torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
        for value in onnx.load(files(case)[1]).graph.initializer
    }
    for stored in ({**program.state_dict, **constants}, initializers):
        assert sum(tensor.numel() for tensor in stored.values()) > 100_000
        assert not [
            (own, other)
            for own, a in weights.items()
            for other, b in stored.items()
            if any(t.shape == b.shape and torch.equal(t, b) for t in (a, a.mT if a.ndim > 1 else a))
        ]


def is_prompted(module):
    return isinstance(module, PromptedTextEncoder)


@pytest.mark.parametrize("name", ["a.pt2", "a.onnx", "a.safetensors"])
def test_a_full_disk_is_one_line_and_leaves_nothing(name, full_disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = torch.export.export(torch.nn.Linear(300, 300), (torch.zeros(1, 300),))
    write = {
        "a.pt2": lambda: write_program(program, name, {}),
        "a.onnx": lambda: write_onnx(program, name, {"outputs": ["out"]}),
        "a.safetensors": lambda: write_weights(name, {"a": torch.zeros(300, 300)}, {}),
    }[name]
    full_disk(100_000)
    with pytest.raises(
        OutputError, match=f"^{re.escape(name)} cannot be written: .*File too large"
    ):
        write()
    assert os.listdir() == []


def test_weights_that_do_not_fit_into_one_onnx_file(files, parts, tmp_path, monkeypatch):
    """torch would write a second file, under the name of the temporary one."""
    case = "semantic zero-shot"
    program = torch.export.load(files(case)[0])
    metadata = describe(parts(case), FIXED[case], {})
    stored = onnx.load(files(case)[1]).graph.initializer
    size = sum(onnx.numpy_helper.to_array(value).nbytes for value in stored)
    monkeypatch.setattr(writing, "_ONNX_MAX_BYTES", size - 1)
    with pytest.raises(ConfigError, match=r"big\.onnx: .* MiB of weights.*choose the format torch"):
        write_onnx(program, tmp_path / "big.onnx", metadata)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(writing, "_ONNX_MAX_BYTES", size)
    write_onnx(program, tmp_path / "big.onnx", metadata)
    assert [path.name for path in tmp_path.iterdir()] == ["big.onnx"]


def test_the_limit_is_that_of_torch():
    """Above it torch makes two files of one."""
    exporter = pytest.importorskip("torch.onnx._internal.exporter._onnx_program")
    assert writing._ONNX_MAX_BYTES <= exporter._LARGE_MODEL_THRESHOLD


def test_wrong_names_and_sizes(make_dense, tmp_path):
    part = make_dense("vit")
    with pytest.raises(ConfigError, match=r"to a \.pt2 file"):
        write_program(None, tmp_path / "a.pt", {})
    with pytest.raises(ConfigError, match=r"to a \.onnx file"):
        write_onnx(None, tmp_path / "a.pt2", {})
    with pytest.raises(ConfigError, match="multiples of 8"):
        trace(part, (20, 24))
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_for_onnx(monkeypatch, tmp_path):
    monkeypatch.setattr(writing, "find_spec", lambda name: None)
    with pytest.raises(InstallationError, match=r"onnx and onnxscript: pip install -e '\.\[exp"):
        write_onnx(None, tmp_path / "a.onnx", {"outputs": {}})
