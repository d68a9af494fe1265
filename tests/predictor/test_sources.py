"""Where a model comes from."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from densedet import model_zoo
from densedet.errors import ConfigError
from densedet.predictor import Predictor
from densedet.saved_model import open_model, save_model


def test_the_quickstart_is_what_make_demo_trains(save_untrained, tmp_path, monkeypatch, image):
    monkeypatch.chdir(tmp_path)
    config = model_zoo.get_config("projects/clipself/configs/quickstart_detector.py")
    config.model.backbone.bottom_up.bottom_up.visual.pretrained = "shipped"
    trained = tmp_path / "output/quickstart/clipself/model_final.pth"
    trained.parent.mkdir(parents=True)
    shutil.copy(save_untrained(config), trained)
    predictor = Predictor(device="cpu")  # its CLIP is in the checkpoint
    predictor.set_vocabulary("red star")
    assert set(predictor.predict(image).labels) == {"red star"}
    expected = Predictor(config, trained, device="cpu").predict(image).instances.scores
    named = Predictor("quickstart", device="cpu").predict(image).instances.scores
    assert named.equal(expected)
    other = shutil.move(trained, tmp_path / "other.pth")
    with_weights = Predictor("quickstart", other, device="cpu").predict(image).instances.scores
    assert with_weights.equal(expected)
    with pytest.raises(ConfigError, match=r"absent\.pth do not exist"):
        Predictor("quickstart", tmp_path / "absent.pth", device="cpu")


def test_a_short_name_is_never_a_folder(config, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "quickstart-zero-shot"
    save_model(Predictor(config, weights, device="cpu"), tmp_path / name)
    assert Predictor(name, device="cpu").tasks == ("semantic",)
    assert type(open_model(name).model).__name__ == "ZeroShotSegmentor"
    for folder in (f"./{name}", Path(name)):
        assert Predictor(folder, device="cpu").tasks == ("instance",)
        assert type(open_model(folder).model).__name__ == "OpenVocabularyRCNN"


def test_a_saved_model_comes_with_its_vocabulary(config, weights, tmp_path, image):
    first = Predictor(config, weights, device="cpu")
    first.set_vocabulary("crimson star,red star;blue ring")
    save_model(first, tmp_path / "saved")
    second = Predictor(tmp_path / "saved", device="cpu")
    assert second.vocabulary == first.vocabulary and second.trained == first.trained
    found, same = first.predict(image), second.predict(image)
    assert found.labels == same.labels
    assert found.instances.scores.equal(same.instances.scores)
    with pytest.raises(ConfigError, match="with its own weights"):
        Predictor(tmp_path / "saved", weights)


def test_names_of_the_model_zoo():
    zero_shot = Predictor("projects/panoptic_fpn/configs/quickstart_zero_shot", device="cpu")
    assert zero_shot.tasks == ("semantic",)
    with pytest.raises(ConfigError, match="no config 'projects/fvit/configs/quickstar'"):
        Predictor("projects/fvit/configs/quickstar")


def test_the_package_has_the_predictor_and_is_light():
    code = (
        "import sys, densedet\n"
        "assert 'torch' not in sys.modules and 'detectron2' not in sys.modules\n"
        "from densedet.predictor import Predictor\n"
        "assert densedet.Predictor is Predictor\n"
        "assert not hasattr(densedet, 'Predicator')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
