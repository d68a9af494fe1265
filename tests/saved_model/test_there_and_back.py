"""Saved models are given back to the bit."""

import hashlib
import json
import os

import pytest
import torch
from omegaconf import OmegaConf

from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.config import build, load_config
from densedet.predictor import Predictor
from densedet.saved_model import load_model, open_model, save_model
from densedet.vocabulary import Vocabulary
from densedet.weights import read_safetensors

FILES = ["README.md", "config.yaml", "model.safetensors", "vocabulary.json"]
DETECTOR = "projects/fvit/configs/quickstart.py"
WORDS = Vocabulary.parse("crimson star,red star;blue ring;a/b").with_unseen(["blue ring"])
WITH_STUFF = WORDS.with_stuff(Vocabulary.parse("grass,lawn;sky"))
# Config -> a vocabulary that its model can be given, None for that of its training alone.
MODELS = {
    DETECTOR: WORDS,
    "projects/clipself/configs/quickstart_detector.py": WORDS,
    "projects/panoptic_fpn/configs/quickstart.py": WITH_STUFF,
    "projects/panoptic_fpn/configs/quickstart_zero_shot.py": WITH_STUFF,
    "projects/denseclip/configs/quickstart.py": None,
    "projects/icpc/configs/quickstart.py": None,
    "projects/language_bridge/configs/quickstart.py": None,
}


@pytest.mark.parametrize("config", MODELS, ids=lambda name: name.split("/", 1)[1])
def test_outputs_are_equal_to_the_bit(outputs, make, config, tmp_path, monkeypatch):
    model, cfg = make(config)
    trained = model.vocabulary
    if MODELS[config] is not None:
        model.set_vocabulary(MODELS[config])
    expected = outputs(model)
    assert expected and any(t.numel() for t in expected)
    save_model(model, tmp_path / "saved", cfg)
    assert sorted(os.listdir(tmp_path)) == ["saved"]
    assert sorted(os.listdir(tmp_path / "saved")) == FILES
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    random = torch.random.get_rng_state()
    loaded = load_model(tmp_path / "saved")
    assert torch.equal(random, torch.random.get_rng_state())
    assert type(loaded) is type(model) and not loaded.training
    assert loaded.vocabulary == model.vocabulary
    found = outputs(loaded)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    opened = open_model(tmp_path / "saved")
    assert opened.model.vocabulary == trained and opened.vocabulary == model.vocabulary


def test_every_weight_is_in_the_file(detector, whole):
    stored = read_safetensors(whole / "model.safetensors")[0]
    expected = detector[0].state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], value) for name, value in expected.items())


def test_the_folder_is_plain_data(whole):
    text = (whole / "config.yaml").read_text()
    assert "!!" not in text and "${" not in text and ".py" not in text
    content = OmegaConf.to_container(OmegaConf.load(whole / "config.yaml"))
    assert sorted(content) == ["augmentations", "densedet", "files", "format", "model", "sha256"]
    digests = {
        name: hashlib.sha256((whole / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "vocabulary.json")
    }
    assert content["files"] == digests
    card = (whole / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n") and all(d in card for d in digests.values())
    assert json.loads((whole / "vocabulary.json").read_text())["categories"][0]["label"]


def test_a_saved_model_is_saved_again(whole, tmp_path):
    again = save_model(open_model(whole), tmp_path / "again")
    for name in ("config.yaml", "model.safetensors", "vocabulary.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_augmentations_and_a_vocabulary_of_a_file_are_kept(tmp_path):
    cfg = load_config(DETECTOR)
    WORDS.save(tmp_path / "words.json")
    cfg.model.vocabulary = {
        "_target_": "densedet.vocabulary.Vocabulary.from_file",
        "path": str(tmp_path / "words.json"),
    }
    cfg.dataloader.test.mapper.augmentations = [
        {"_target_": "densedet.data.ResizeToFit", "long": 90, "short": 80}
    ]
    save_model(build(cfg.model, "model"), tmp_path / "saved", cfg)
    (tmp_path / "words.json").unlink()
    opened = open_model(tmp_path / "saved")
    assert opened.model.vocabulary == WORDS
    image = make_scene(0, "val", 0).image
    (resize,) = opened.augmentations.augs
    assert resize.get_transform(image).apply_image(image).shape == (80, 80, 3)


def test_a_predictor_is_saved_with_its_words(tmp_path):
    predictor = Predictor("quickstart-zero-shot", device="cpu")
    predictor.set_vocabulary(WITH_STUFF)
    save_model(predictor, tmp_path / "saved")
    again = Predictor(tmp_path / "saved", device="cpu")
    assert again.vocabulary == predictor.vocabulary and again.trained == predictor.trained
    image = make_scene(0, "val", 0).image
    assert torch.equal(again.predict(image).semantic, predictor.predict(image).semantic)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "| training | 70 categories, 70 of them seen: red star," in card
    assert "| vocabulary | 5 categories, 4 of them seen: crimson star, blue ring, a/b," in card


def test_a_text_tower_of_a_file_comes_with_the_model(outputs, own_text, tmp_path):
    cfg = load_config(DETECTOR, [f"clip.pretrained={own_text}"])
    model = build(cfg.model, "model").eval()
    model.set_vocabulary(WORDS)
    expected = outputs(model)
    save_model(model, tmp_path / "saved", cfg)
    own_text.unlink()
    assert sorted(os.listdir(tmp_path / "saved")) == sorted([*FILES, "text.safetensors"])
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    loaded = load_model(moved)
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded), expected, strict=True))
    again = save_model(open_model(moved), tmp_path / "again")
    first, second = (read_safetensors(path / "text.safetensors")[0] for path in (moved, again))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
