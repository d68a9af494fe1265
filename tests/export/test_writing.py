"""Files: parity of torch programs and ONNX with the eager parts, and what they say."""

import json
import os
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch

from densedet import __version__
from densedet.errors import ConfigError, InstallationError
from densedet.export import describe, make_part, trace, write_onnx, write_program, writing
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


def test_a_program_needs_torch_alone(files):
    """No densedet, no open_clip and no Detectron2 where it runs."""
    code = (
        "import sys\n"
        "for name in ('densedet', 'open_clip', 'detectron2', 'timm'): sys.modules[name] = None\n"
        "import torch\n"
        f"program = torch.export.load({str(files('dense vit')[0])!r})\n"
        "dense, scores = program.module()(torch.zeros(1, 3, 16, 24))\n"
        "print(tuple(dense.shape), tuple(scores.shape))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stdout.splitlines()[-1:] == ["(1, 128, 2, 3) (1, 3, 2, 3)"], done.stderr


def test_the_files_have_no_text_tower(files):
    """The words are vectors in it."""
    program = torch.export.load(files("semantic zero-shot")[0])
    names = [*program.state_dict, *program.constants]
    assert names and not any("token_embedding" in n or "embedder" in n for n in names)


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
    with pytest.raises(InstallationError, match=r"onnx and onnxscript: pip install 'densedet"):
        write_onnx(None, tmp_path / "a.onnx", {"outputs": {}})
