"""tools/export_model.py as a user runs it."""

import json

import onnxruntime
import pytest
import torch
from omegaconf import OmegaConf

from densedet.cli import exit_code
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build, load_config
from densedet.export import make_part, select_detections
from densedet.saved_model import open_model, save_model
from densedet.vocabulary import Vocabulary

ZERO_SHOT = "projects/panoptic_fpn/configs/quickstart_zero_shot.py"
DETECTOR = "projects/fvit/configs/quickstart.py"
PANOPTIC = "projects/panoptic_fpn/configs/quickstart.py"
MASK_ENSEMBLE = (
    "model.backbone.bottom_up.bottom_up.dense=True",
    "model.mask_ensemble={_target_: densedet.modeling.mask_ensemble.MaskEnsemble, "
    "seen: 0.0, unseen: 0.65, temperature: 27.0}",
)
WORDS = "red star,crimson star;blue ring"


def arguments(config, output, *more, words=WORDS):
    named = ["--config-file", config, "--vocabulary", words, "--output", output, *more]
    return [str(argument) for argument in named]


def test_a_semantic_model_as_onnx(export_model, tmp_path, capsys):
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
        expected = torch.stack([x["sem_seg"].full() for x in model([{"image": i} for i in images])])
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-4)


def test_a_trained_detector_as_a_program(export_model, tmp_path):
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


def test_what_comes_after_the_part_is_named(export_model, tmp_path, capsys):
    config, changes = PANOPTIC, [f"train.output_dir={tmp_path}", *MASK_ENSEMBLE]
    torch.manual_seed(0)
    model = build(load_config(config, changes).model, "model")
    Checkpointer(model, str(tmp_path)).save("model_final")
    words = Vocabulary.parse("red star").with_stuff(Vocabulary.parse("grass"))
    words.save(tmp_path / "words.json")
    file = tmp_path / "stars.pt2"
    options = ("--part", "semantic", "--size", 64, 64, *changes)
    assert export_model.main(arguments(config, file, *options, words=tmp_path / "words.json")) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left out, as it comes after this part: mask_ensemble"
    ]
    extra = {"metadata.json": ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra["metadata.json"])["settings"]["left_out"] == ["mask_ensemble"]


def test_a_saved_model_is_given_as_its_folder(export_model, tmp_path, capsys):
    """Its config alone is not checked, and it is what it was saved as."""
    folder = save_model(open_model("quickstart-zero-shot"), tmp_path / "saved")
    marker = tmp_path / "ran"
    content = OmegaConf.load(folder / "config.yaml")
    content.model = {"_target_": "os.mkdir", "path": str(marker)}
    OmegaConf.save(content, folder / "config.yaml")
    file = tmp_path / "a.pt2"
    wrong = {
        "is of a saved model: give the folder, ": (folder / "config.yaml",),
        "a saved model takes no overrides: leave model.path=x out": (folder, "model.path=x"),
        "give the folder, ": (folder / "config.yaml", "model.path=x"),
    }
    for message, (source, *overrides) in wrong.items():
        argv = arguments(str(source), file, *overrides)
        assert exit_code(lambda argv=argv: export_model.main(argv)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line
    assert not marker.exists() and not file.exists()


@pytest.mark.parametrize(
    ("config", "name", "options", "message"),
    [
        (ZERO_SHOT, "a.pt", (), "give a .pt2 or .onnx file"),
        (ZERO_SHOT, "a.pt2", ("--format", "onnx"), "give a .onnx file"),
        (ZERO_SHOT, "a.onnx", ("--format", "tflite"), "choose from torch, onnx"),
        (ZERO_SHOT, "a.pt2", ("--size", 20, 24), "multiples of 8 pixels"),
        (ZERO_SHOT, "a.pt2", ("--part", "detector", "--size", 32, 32), "no OpenVocabularyRCNN"),
        (ZERO_SHOT, "a.pt2", ("--part", "masks"), "choose from dense, semantic, detector"),
        (ZERO_SHOT, "a.pt2", ("--weights", "absent.pth"), "absent.pth do not exist"),
        (ZERO_SHOT, "a.pt2", ("model.windows=3",), "windows"),
        ("absent.py", "a.pt2", (), "absent.py"),
        (DETECTOR, "a.pt2", ("--part", "detector"), "do not exist"),
        ("projects/clipself/configs/quickstart.py", "a.pt2", (), "the config needs 'model'"),
    ],
)
def test_wrong_use_is_one_line(
    export_model, tmp_path, capsys, monkeypatch, config, name, options, message
):
    output = tmp_path / name
    overrides = [f"train.output_dir={tmp_path}"] if config == DETECTOR else []
    argv = arguments(config, output, *options, *overrides)
    assert exit_code(lambda: export_model.main(argv)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not output.exists()


def test_a_vocabulary_is_needed(export_model, capsys):
    argv = ["--config-file", ZERO_SHOT, "--output", "a.pt2"]
    assert exit_code(lambda: export_model.main(argv)) == 2
    assert "--vocabulary" in capsys.readouterr().err
    assert exit_code(lambda: export_model.main(arguments(ZERO_SHOT, "a.pt2", words=""))) == 2
    assert capsys.readouterr().err.startswith("error: ")
