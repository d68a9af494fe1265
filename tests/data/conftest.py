"""A tiny COCO-format data set on disk."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densedet.vocabulary import Category, Vocabulary

TINY: dict[str, Any] = {
    "images": [
        {"id": 7, "width": 60, "height": 40, "file_name": "b.jpg"},
        {"id": 3, "width": 50, "height": 50, "file_name": "a.jpg"},
        {"id": 9, "width": 30, "height": 20, "file_name": "c.jpg"},
    ],
    "categories": [
        {"id": 44, "name": "dog"},
        {"id": 2, "name": "cat"},
        {"id": 5, "name": "zebra"},
    ],
    "annotations": [
        {
            "id": 1,
            "image_id": 3,
            "category_id": 2,
            "bbox": [5, 6, 20, 10],
            "iscrowd": 0,
            "segmentation": [[5, 6, 25, 6, 25, 16, 5, 16]],
        },
        {
            "id": 2,
            "image_id": 3,
            "category_id": 44,
            "bbox": [30, 30, 10, 20],
            "iscrowd": 0,
            "segmentation": [[30, 30, 40, 30, 40, 50, 30, 50]],
        },
        {
            "id": 3,
            "image_id": 7,
            "category_id": 44,
            "bbox": [0, 0, 60, 40],
            "iscrowd": 1,
            "segmentation": {"size": [40, 60], "counts": [0, 2400]},
        },
    ],
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """The content of a small COCO-format file; a test may change it."""
    return copy.deepcopy(TINY)


@pytest.fixture
def vocabulary() -> Vocabulary:
    """cat (seen), dog (unseen), zebra (seen): not in the order of the file or of its ids."""
    return Vocabulary((Category("cat"), Category("dog", seen=False), Category("zebra")))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write an annotation file, and its images as noise, and return the file's path."""

    def write_data(data: dict[str, Any], name: str = "instances.json") -> Path:
        rng = np.random.default_rng(0)
        for image in data["images"]:
            pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / image["file_name"], quality=95)
        path = tmp_path / name
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return write_data


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write an array as an image below the temporary folder; by default one of 4 x 3."""

    def save_image(name: str, array: Any = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((4, 3, 3), dtype=np.uint8) if array is None else np.asarray(array)
        Image.fromarray(pixels).save(path)
        return path

    return save_image
