"""Saved models are written whole, and nothing of the user's is lost."""

import copy
import os

import pytest
import torch

from densedet.errors import ConfigError, OutputError
from densedet.saved_model import open_model, save_model

FILES = ["README.md", "config.yaml", "model.safetensors", "vocabulary.json"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_weights_than_fp32_are_not_saved(detector, tmp_path, dtype):
    model, cfg = detector
    with pytest.raises(ConfigError, match=rf"in {dtype}, .*convert it first, model\.float\(\)"):
        save_model(copy.deepcopy(model).to(dtype), tmp_path / "saved", cfg)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["README.md", "vocabulary.json", "config.yaml"])
def test_files_of_the_same_names_are_not_lost(detector, tmp_path, name):
    """A folder with a README of the user's own is no saved model."""
    model, cfg = detector
    (tmp_path / name).write_text("dear: diary")
    with pytest.raises(OutputError, match=rf"holds '{name}', which would be lost"):
        save_model(model, tmp_path, cfg)
    assert (tmp_path / name).read_text() == "dear: diary"


def test_folders_and_links_of_the_same_names_are_not_lost(detector, folder, tmp_path):
    model, cfg = detector
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    (folder / "README.md" / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"holds 'README\.md'"):
        save_model(model, folder, cfg)
    assert (folder / "README.md" / "diary.txt").read_text() == "dear"
    only = tmp_path / "only"
    (only / "config.yaml").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"holds 'config\.yaml'"):
        save_model(model, only, cfg)
    assert (only / "config.yaml").is_dir()


@pytest.mark.parametrize("name", [".", "..", "", "../inner"])
def test_the_working_folder_is_not_replaced(detector, tmp_path, monkeypatch, name):
    model, cfg = detector
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(OutputError, match="leave the folder first"):
        save_model(model, name, cfg)
    assert os.listdir(tmp_path) == ["inner"] and os.listdir(tmp_path / "inner") == []


@pytest.mark.parametrize(
    ("size", "named"),
    [(100_000, "model.safetensors"), (1000, "vocabulary.json")],
    ids=["the weights", "the vocabulary before them"],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(size, named, full_disk, tmp_path, monkeypatch):
    """The names are those that last."""
    monkeypatch.chdir(tmp_path)
    saved = open_model("quickstart-zero-shot")
    full_disk(size)
    with pytest.raises(OutputError, match="File too large") as caught:
        save_model(saved, "saved")
    assert str(caught.value).startswith(f"{os.path.join('saved', named)} cannot be written: ")
    assert "saved." not in str(caught.value)
    assert os.listdir() == []


def test_other_files_are_not_lost(detector, tmp_path):
    model, cfg = detector
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"holds 'diary\.txt'"):
        save_model(model, tmp_path, cfg)
    with pytest.raises(OutputError, match="is a file"):
        save_model(model, tmp_path / "diary.txt", cfg)
    assert (tmp_path / "diary.txt").read_text() == "dear"


def test_a_failure_leaves_what_was_there(detector, folder):
    model, cfg = detector
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    bad = cfg.copy()
    bad.model = cfg.model.copy()
    bad.model.roi_heads = cfg.model.roi_heads.copy()
    bad.model.roi_heads.box_head = {"_target_": "densedet.engine.config.load_config", "path": "x"}
    with pytest.raises(ConfigError, match=r"model\.roi_heads\.box_head"):
        save_model(model, folder, bad)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert os.listdir(folder.parent) == ["model"]
    save_model(model, folder, cfg)
    assert sorted(os.listdir(folder)) == FILES


def test_what_is_no_model_with_words_is_refused(detector, tmp_path):
    model, cfg = detector
    with pytest.raises(ConfigError, match="give the config"):
        save_model(model, tmp_path / "saved")
    with pytest.raises(ConfigError, match="Linear has no vocabulary"):
        save_model(torch.nn.Linear(1, 1), tmp_path / "saved", cfg)
    assert not (tmp_path / "saved").exists()
