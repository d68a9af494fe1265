"""tools/export_model.py as a user runs it."""

import json

import onnxruntime
import pytest
import torch

from densedet.cli import exit_code
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build, load_config
from densedet.export import make_part, select_detections
from densedet.vocabulary import Vocabulary
from tools import export_model

ZERO_SHOT = "projects/panoptic_fpn/configs/quickstart_zero_shot.py"
DETECTOR = "projects/fvit/configs/quickstart.py"
WORDS = "red star,crimson star;blue ring"


def arguments(config, output, *more, words=WORDS):
    named = ["--config-file", config, "--vocabulary", words, "--output", str(output)]
    return [*named, *map(str, more)]


def test_a_semantic_model_as_onnx(tmp_path, capsys):
    file = tmp_path / "deep" / "stars.onnx"
    options = ("--part", "semantic", "--format", "onnx", "--size", 40, 48)
    assert export_model.main(arguments(ZERO_SHOT, file, *options)) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{file}: semantic part of ZeroShotSegmentor, 2 categories, pictures of")
    assert "40x48 (HxW)" in line
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["densedet"])
    assert metadata["labels"] == ["red star", "blue ring"]
    assert metadata["input"]["size"] == [40, 48] and metadata["input"]["batch"] is None
    images = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 255
    (logits,) = session.run(None, {"images": images.numpy()})
    model = build(load_config(ZERO_SHOT).model, "model").eval()
    model.set_vocabulary(Vocabulary.parse(WORDS))
    with torch.no_grad():
        expected = torch.stack([x["sem_seg"] for x in model([{"image": i} for i in images])])
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_a_trained_detector_as_a_program(tmp_path):
    torch.manual_seed(0)
    model = build(load_config(DETECTOR).model, "model").eval()
    Checkpointer(model, str(tmp_path)).save("weights")
    file = tmp_path / "stars.pt2"
    options = ("--part", "detector", "--size", 96, 128, "--weights", tmp_path / "weights.pth")
    assert export_model.main(arguments(DETECTOR, file, *options)) == 0
    extra = {"metadata.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    metadata = json.loads(extra["metadata.json"])
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0)) * 255
    found = select_detections(*program(image[None]), metadata, (96, 128))
    # what training had labels of counts as seen
    model.set_vocabulary(Vocabulary.parse(WORDS).seen_by(model.vocabulary))
    with torch.no_grad():
        (expected,) = model([{"image": image}])
    assert torch.equal(found.pred_classes, expected["instances"].pred_classes) and len(found)
    torch.testing.assert_close(found.scores, expected["instances"].scores, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        boxes = make_part(model, "detector", (96, 128))(image[None])[0]
    torch.testing.assert_close(program(image[None])[0], boxes, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "name", "options", "message"),
    [
        (ZERO_SHOT, "a.pt", (), "give a .pt2 or .onnx file"),
        (ZERO_SHOT, "a.pt2", ("--format", "onnx"), "give a .onnx file"),
        (ZERO_SHOT, "a.pt2", ("--size", 20, 24), "multiples of 8 pixels"),
        (ZERO_SHOT, "a.pt2", ("--part", "detector", "--size", 32, 32), "no OpenVocabularyRCNN"),
        (ZERO_SHOT, "a.pt2", ("--part", "masks"), "invalid choice: 'masks'"),
        (ZERO_SHOT, "a.pt2", ("--weights", "absent.pth"), "absent.pth do not exist"),
        (ZERO_SHOT, "a.pt2", ("model.windows=3",), "windows"),
        ("absent.py", "a.pt2", (), "absent.py"),
        (DETECTOR, "a.pt2", ("--part", "detector"), "do not exist"),
        ("projects/clipself/configs/quickstart.py", "a.pt2", (), "no vocabulary to change"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, capsys, monkeypatch, config, name, options, message):
    output = tmp_path / name
    overrides = [f"train.output_dir={tmp_path}"] if config == DETECTOR else []
    argv = arguments(config, output, *options, *overrides)
    assert exit_code(lambda: export_model.main(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not output.exists()


def test_a_vocabulary_is_needed(capsys):
    argv = ["--config-file", ZERO_SHOT, "--output", "a.pt2"]
    assert exit_code(lambda: export_model.main(argv)) == 2
    assert "--vocabulary" in capsys.readouterr().err
    assert exit_code(lambda: export_model.main(arguments(ZERO_SHOT, "a.pt2", words=""))) == 2
    assert capsys.readouterr().err.startswith("error: ")
