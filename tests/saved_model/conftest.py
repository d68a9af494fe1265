"""A detector with untrained heads on the shipped CLIP, saved."""

import shutil
from pathlib import Path

import pytest
import torch

from densedet.clip import create_clip
from densedet.clip.checkpoints import write_weights
from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.config import build, load_config
from densedet.modeling.pixel_scores import PixelScores
from densedet.saved_model import save_model

DETECTOR = "projects/fvit/configs/quickstart.py"


@pytest.fixture(scope="session")
def make():
    """Gives the model of a config, with untrained heads, and the config."""

    def made(config):
        cfg = load_config(config)
        if config == "projects/clipself/configs/quickstart_detector.py":
            cfg.model.backbone.bottom_up.bottom_up.visual.pretrained = "shipped"
        torch.manual_seed(3)
        return build(cfg.model, "model").eval(), cfg

    return made


def tensors(value):
    """Every tensor in the outputs of a model."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, PixelScores):
        return [value.full()]
    if hasattr(value, "get_fields"):
        value = value.get_fields()
    if hasattr(value, "tensor"):
        return [value.tensor]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []


@pytest.fixture(scope="session")
def outputs():
    """Gives every tensor that a model says of a scene."""

    def said(model):
        image = torch.as_tensor(make_scene(0, "val", 0).image.transpose(2, 0, 1).copy())
        with torch.no_grad():
            return tensors(model([{"image": image, "height": 160, "width": 160}]))

    return said


@pytest.fixture(scope="session")
def detector(make):
    """The model and its config."""
    return make(DETECTOR)


@pytest.fixture(scope="session")
def whole(detector, tmp_path_factory):
    """A folder that `save_model` wrote, for all tests: not to be changed."""
    model, cfg = detector
    return save_model(model, tmp_path_factory.mktemp("saved") / "model", cfg)


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def own_text(tmp_path):
    """A CLIP in a file, with a text tower that is not the shipped one."""
    clip = create_clip("densedet-tiny", "shipped")
    with torch.no_grad():
        clip.text_projection.add_(0.1 * torch.randn(clip.text_projection.shape))
    write_weights(tmp_path / "own.safetensors", clip.state_dict(), {})
    return tmp_path / "own.safetensors"
