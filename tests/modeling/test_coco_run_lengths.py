"""Run lengths from the part of a mask that is covered, against pycocotools."""

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from densedet.modeling.run_lengths import detection_records
from densedet.predictor import coco_results
from densedet.vocabulary import Vocabulary


def masks(height, width, rng):
    """Empty, full, single pixels and columns at the borders, noise, and noise in boxes."""
    yield np.zeros((height, width), bool)
    yield np.ones((height, width), bool)
    for density in (0.02, 0.5, 0.95):
        yield rng.random((height, width)) < density
    for _ in range(20):
        mask = np.zeros((height, width), bool)
        top, bottom = np.sort(rng.integers(0, height + 1, 2))
        left, right = np.sort(rng.integers(0, width + 1, 2))
        mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < rng.random() * 1.5
        yield mask
    for row, column in ((0, 0), (-1, 0), (0, -1), (-1, -1)):
        mask = np.zeros((height, width), bool)
        mask[row, column] = True
        yield mask
        mask[:, column] = True
        yield mask


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (24, 31), (120, 80)], ids=str)
@pytest.mark.parametrize("small", [0, 1 << 20])
def test_run_lengths_are_those_of_pycocotools(size, small, monkeypatch):
    monkeypatch.setattr("densedet.modeling.run_lengths._SMALL", small)
    every = np.stack(list(masks(*size, np.random.default_rng(0))))
    instances = Instances(
        size,
        pred_boxes=Boxes(torch.zeros(len(every), 4)),
        scores=torch.ones(len(every)),
        pred_classes=torch.zeros(len(every), dtype=torch.int64),
        pred_masks=torch.from_numpy(every),
    )
    found = coco_results(instances, 1, Vocabulary.resolve("cat"))
    for result, mask in zip(found, every, strict=True):
        expected = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        expected["counts"] = expected["counts"].decode("ascii")
        assert result["segmentation"] == expected


@pytest.mark.parametrize("with_masks", [True, False])
@pytest.mark.parametrize("count", [0, 5])
def test_records_are_those_of_detectron2(with_masks, count):
    rng = np.random.default_rng(1)
    fields = {"pred_masks": torch.from_numpy(rng.random((count, 9, 7)) < 0.4)} if with_masks else {}
    instances = Instances(
        (9, 7),
        pred_boxes=Boxes(torch.rand(count, 4)),
        scores=torch.rand(count),
        pred_classes=torch.arange(count),
        **fields,
    )
    assert detection_records(instances, 3) == instances_to_coco_json(instances, 3)
