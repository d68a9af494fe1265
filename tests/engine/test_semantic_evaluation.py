"""A segmentor through the whole job: results.json, with classes that are absent.

The figures are compared with pixels counted here.
"""

import json

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torch import nn

from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.engine.config import load_config
from densedet.engine.train import evaluate, train
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

WORLD = Vocabulary.named("shapes_world")


class Guess(nn.Module):
    """Says "grass" in the upper half and "red ball" in the lower, everywhere."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(70))

    @property
    def vocabulary(self):
        return WORLD

    def forward(self, batch):
        if self.training:
            labels = torch.stack([one["sem_seg"] for one in batch])
            scores = self.bias[None, :, None, None].expand(len(batch), -1, *labels.shape[1:])
            return {"loss": nn.functional.cross_entropy(scores, labels, ignore_index=255)}
        scores = torch.zeros(70, 160, 160)
        scores[WORLD.index("grass"), :80] = 1
        scores[WORLD.index("red ball"), 80:] = 1
        return [{"sem_seg": scores} for _ in batch]


@pytest.fixture
def _no_shapes_world():
    """The names may be taken by another root."""
    for name in [n for n in set(DatasetCatalog) if n.startswith("shapes_world")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def cfg(tmp_path, _no_shapes_world):
    write_shapes_world(tmp_path, ShapesWorldRecipe(train=4, val=2))
    cfg = load_config("configs/common/data/shapes_world_semantic.py")
    cfg.train = load_config("configs/common/train.py").train
    cfg.train.update(output_dir=str(tmp_path / "out"), device="cpu", max_iter=2, eval_period=0)
    cfg.train.sync_batch_norm = True  # one process: nothing to do
    cfg.optimizer = load_config("configs/common/optim.py").AdamW
    cfg.lr_multiplier = load_config("configs/common/schedule.py").poly
    cfg.dataloader.register[0].root = str(tmp_path)
    cfg.model = L(Guess)()
    return cfg


def _mean_iou(folder):
    truth = np.stack(
        [np.array(Image.open(f"{folder}/shapes_world/semantic_val/{i:06d}.png")) for i in (0, 1)]
    )
    guess = np.full_like(truth, WORLD.index("grass"))
    guess[:, 80:] = WORLD.index("red ball")
    ious = {}
    for i in np.unique(np.concatenate([truth, guess])):
        union = ((truth == i) | (guess == i)).sum()
        ious[WORLD.labels[i]] = 100 * ((truth == i) & (guess == i)).sum() / union
    means = {
        "truth": np.mean([ious[WORLD.labels[i]] for i in np.unique(truth)]),
        "either": np.mean(list(ious.values())),
    }
    return means, set(np.unique(truth))


def _read(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("job", [evaluate, train])
def test_classes_that_are_absent_are_null(cfg, tmp_path, job):
    job(cfg)
    results = _read((tmp_path / "out/results.json").read_text(encoding="utf-8"))["sem_seg"]
    expected, present = _mean_iou(tmp_path)
    assert results["mIoU"] == results["mIoU-truth"] == pytest.approx(expected["truth"])
    assert results["mIoU-either"] == pytest.approx(expected["either"])
    with np.load(tmp_path / "out/confusion_shapes_world_semantic_val.npz") as stored:
        assert stored["confusion"].shape == (70, 71)
        assert stored["confusion"].sum() == 2 * 160 * 160
    absent = set(range(70)) - present
    assert len(absent) > 40
    for i in absent:
        assert results[f"ACC-{WORLD.labels[i]}"] is None
    assert all(isinstance(results[f"ACC-{WORLD.labels[i]}"], float) for i in present)
    if job is train:
        lines = (tmp_path / "out/metrics.json").read_text(encoding="utf-8").splitlines()
        (curve,) = [figures for figures in map(_read, lines) if "sem_seg/mIoU" in figures]
        assert curve["sem_seg/mIoU"] == results["mIoU"]
        assert {f"sem_seg/ACC-{WORLD.labels[i]}" for i in present} < set(curve)
        assert not {f"sem_seg/ACC-{WORLD.labels[i]}" for i in absent} & set(curve)


def test_a_label_that_is_no_class_is_not_counted_as_ignored(cfg, tmp_path):
    file = tmp_path / "shapes_world/semantic_val/000001.png"
    with Image.open(file) as image:
        labels = np.array(image)
    labels[0, 0] = 70
    Image.fromarray(labels).save(file)
    with pytest.raises(DatasetError, match=r"000001\.png has the label 70, .*labels prepared\?"):
        evaluate(cfg)
    assert not (tmp_path / "out/results.json").exists()
