"""Predictors on the shipped tiny CLIP, with untrained heads."""

import pytest
import torch

from densedet import model_zoo
from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build
from densedet.predictor import Predictor


@pytest.fixture(scope="session")
def save_untrained(tmp_path_factory):
    """Builds the model of a config with random heads; gives the checkpoint."""

    def save(config):
        folder = tmp_path_factory.mktemp("weights")
        torch.manual_seed(0)
        Checkpointer(build(config.model, "model"), str(folder)).save("model_final")
        return folder / "model_final.pth"

    return save


@pytest.fixture(scope="session")
def config():
    return model_zoo.get_config("projects/fvit/configs/quickstart.py")


@pytest.fixture(scope="session")
def weights(config, save_untrained):
    return save_untrained(config)


@pytest.fixture(scope="module")
def predictor(config, weights):
    return Predictor(config, weights, device="cpu")


@pytest.fixture(scope="session")
def panoptic_source(save_untrained):
    """Config and weights of the panoptic quickstart; its instances have any score."""
    config = model_zoo.get_config("projects/panoptic_fpn/configs/quickstart.py")
    config.model.combine_instances_score_thresh = 0.0
    return config, save_untrained(config)


@pytest.fixture(scope="module")
def panoptic(panoptic_source):
    return Predictor(*panoptic_source, device="cpu")


@pytest.fixture(scope="module")
def zero_shot():
    config = model_zoo.get_config("projects/panoptic_fpn/configs/quickstart_zero_shot.py")
    return Predictor(config, device="cpu")


@pytest.fixture(scope="module")
def guided(save_untrained):
    """DenseCLIP, segmenting from its score map, in windows."""
    config = model_zoo.get_config("projects/denseclip/configs/quickstart.py")
    config.model.update(predict_from="scores", window=96, window_stride=64)
    return Predictor(config, save_untrained(config), device="cpu")


@pytest.fixture(scope="session")
def image():
    return make_scene(0, "val", 0).image
