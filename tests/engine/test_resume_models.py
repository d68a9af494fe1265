"""A training that is resumed equals one that was never interrupted, for every meta-architecture."""

import shutil
from pathlib import Path

import pytest
import torch

from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.engine.config import load_config
from densedet.engine.train import train
from densedet.modeling import meta_arch

TINY = Path(__file__).parent / "configs"
# each with the class whose training it is
CONFIGS = {
    "tiny_retinanet": "RetinaNet",
    "tiny_rcnn": "GeneralizedRCNN",
    "tiny_region_clip": "RegionCLIP",
    "tiny_clipself": "CLIPSelf",
    "fvit/quickstart": "OpenVocabularyRCNN",
    "fvit/quickstart_closed_set": "ClosedSetRCNN",
    "panoptic_fpn/quickstart": "OpenVocabularyPanopticFPN",
    "denseclip/quickstart": "Segmentor",
    "icpc/quickstart": "Segmentor",
}
# Detectron2's classes on another backbone, which are those above to a resumed training; the last is
# never trained
SAME = {"GuidedRetinaNet", "GuidedRCNN", "ZeroShotSegmentor"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of the data sets."""
    folder = tmp_path_factory.mktemp("data")
    write_shapes_world(folder, ShapesWorldRecipe(train=6, val=1, pairs=0, seed=0))
    return folder


def load(name, data, out):
    """The config of three steps with a checkpoint after the first two."""
    project, _, file = name.rpartition("/")
    path = f"projects/{project}/configs/{file}.py" if project else TINY / f"{name}.py"
    changes = {
        "train.output_dir": out,
        "train.max_iter": 3,
        "train.eval_period": 0,
        "train.num_threads": 1,
        "train.log_period": 1,
        "train.checkpointer.period": 2,
        "dataloader.register.0.root": data,
        "dataloader.train.total_batch_size": 2,
        "dataloader.train.num_workers": 0,
    }
    cfg = load_config(str(path), [f"{key}={value}" for key, value in changes.items()])
    cfg.dataloader.pop("evaluator", None)
    return cfg


def state(file):
    """Everything that a checkpoint holds, flat."""
    flat = {}

    def add(path, value):
        if isinstance(value, dict):
            for key in value:
                add((*path, key), value[key])
        elif isinstance(value, list | tuple):
            for number, part in enumerate(value):
                add((*path, number), part)
        else:
            flat[path] = value

    add((), torch.load(file, weights_only=True))
    return flat


def equal(one, two):
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resumed_training_equals_the_whole_one(name, data, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    train(load(name, data, whole))
    part.mkdir()
    shutil.copy(whole / "model_0000001.pth", part)
    (part / "last_checkpoint").write_text("model_0000001.pth")
    train(load(name, data, part), resume=True)

    expected, found = state(whole / "model_final.pth"), state(part / "model_final.pth")
    assert found.keys() == expected.keys()
    assert [path for path in expected if not equal(found[path], expected[path])] == []
    # the comparison would notice: the last step did move the weights
    before = state(whole / "model_0000001.pth")
    assert [
        path for path in before if path[0] == "model" and not equal(before[path], expected[path])
    ]


def test_every_meta_architecture_is_resumed(data, tmp_path):
    found = {name: load(name, data, tmp_path).model._target_ for name in CONFIGS}
    names = {name: getattr(kind, "__name__", str(kind)) for name, kind in found.items()}
    assert names == CONFIGS
    ours = {name for name in meta_arch.__all__ if isinstance(getattr(meta_arch, name), type)}
    assert ours - set(CONFIGS.values()) - SAME == set()
