"""CLIPSelf from pictures to weights: under torchrun, and on Detectron2's proposals."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from densedet.engine.checkpoint import read_checkpoint
from densedet.engine.config import load_config
from densedet.engine.train import train

CONFIG = Path(__file__).parent / "configs/tiny_proposals.py"


def weights(folder):
    return read_checkpoint(str(folder / "out" / "model_final.pth"))["model"]


def test_two_processes_equal_one_with_the_doubled_batch(tmp_path, run_tool):
    found = []
    for processes in (0, 2):
        folder = tmp_path / str(processes)
        done = run_tool(
            "clipself",
            f"train.output_dir='{folder}/out'",
            f"dataloader.register.0.root='{tmp_path}/data'",
            nproc=processes,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(weights(folder))
    one, two = found
    moved = 0.0
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-5)
        if name.startswith("student.") and value.is_floating_point():
            start = one[name.replace("student.", "teacher.", 1)]
            moved = max(moved, (value - start).abs().max().item())
    assert moved > 1e-3  # far more than the tolerance


@pytest.fixture
def train_on_proposals(tmp_path):
    """Train tiny_proposals on three pictures in a folder of its own; return the weights."""
    generator = np.random.default_rng(0)
    images, boxes, scores = [], [], []
    for number in (1, 2, 3):
        name, height, width = f"{number}.png", 60, 50 + 10 * number
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        corners = generator.uniform(0, 25, (4, 2))
        found = np.concatenate([corners, corners + generator.uniform(12, 25, (4, 2))], axis=1)
        boxes.append(found.astype(np.float32))
        scores.append(generator.normal(size=4).astype(np.float32))
    ids = [image["id"] for image in images]
    content = {"ids": ids, "boxes": boxes, "objectness_logits": scores}
    (tmp_path / "boxes.pkl").write_bytes(pickle.dumps({**content, "bbox_mode": BoxMode.XYXY_ABS}))
    file = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "images.json").write_text(json.dumps(file))

    def run(name, cache):
        folder = tmp_path / name
        overrides = {
            "train.output_dir": folder / "out",
            "dataloader.register.0.json_file": tmp_path / "images.json",
            "dataloader.register.0.image_root": tmp_path,
            "dataloader.register.0.proposal_file": tmp_path / "boxes.pkl",
        }
        texts = [f"{key}='{value}'" for key, value in overrides.items()]
        texts.append(f"model.teacher_cache={cache if cache is None else repr(str(cache))}")
        train(load_config(str(CONFIG), [text.replace("None", "null") for text in texts]))
        return weights(folder)

    yield run
    DatasetCatalog.remove("tiny_proposals")
    MetadataCatalog.remove("tiny_proposals")


def test_proposals_of_detectron2_with_a_cached_teacher(tmp_path, train_on_proposals):
    cache = tmp_path / "cache"
    first = train_on_proposals("first", cache)
    files = {path: path.read_bytes() for path in cache.rglob("*.safetensors")}
    assert 2 <= len(files) <= 3  # of four pictures drawn from three
    again = train_on_proposals("again", cache)
    assert {path: path.read_bytes() for path in cache.rglob("*.safetensors")} == files
    without = train_on_proposals("without", None)
    moved = 0.0
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-6)
        torch.testing.assert_close(without[name], value, rtol=0, atol=1e-6)
        if name.startswith("student.") and value.is_floating_point():
            start = first[name.replace("student.", "teacher.", 1)]
            moved = max(moved, (value - start).abs().max().item())
    assert moved > 1e-4
