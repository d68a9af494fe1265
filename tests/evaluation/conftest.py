"""Random ground truth and detections, and the processes that a test leaves."""

import json
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from densedet.vocabulary import Category, Vocabulary

LABELS = {12: "kite", 3: "cat", 40: "dog", 7: "ball", 5: "cup"}
SEEN = ("cat", "ball", "cup")


def _rle(box: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    """A mask with round corners in a box (XYWH)."""
    x, y, width, height = box
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    inside = ((columns - x - width / 2) / (width / 2)) ** 4 + (
        (rows - y - height / 2) / (height / 2)
    ) ** 4 <= 1
    encoded = mask_util.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": list(size), "counts": encoded["counts"].decode()}


def random_coco(seed: int, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth and detections with crowds, equal scores, and images without either.

    The categories are not in the order of their ids; "cup" has crowds only, "ball" no detection.
    """
    rng = np.random.default_rng(seed)
    size = (120, 160)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in range(images):
        for _ in range(0 if image == 3 else rng.integers(1, 7)):
            category = int(rng.choice(list(LABELS)))
            width, height = rng.uniform(6, [110, 90])
            box = [rng.uniform(0, 160 - width), rng.uniform(0, 120 - height), width, height]
            crowd = int(category == 5 or rng.random() < 0.15)
            mask = _rle(box, size)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + image,
                    "category_id": category,
                    "bbox": box,
                    "iscrowd": crowd,
                    "area": float(mask_util.area(mask)),
                    "segmentation": mask,
                }
            )
            for _ in range(0 if image == 5 else rng.integers(0, 4)):
                found = (np.array(box) + rng.normal(0, 3, 4)).clip([0, 0, 3, 3]).tolist()
                named = category if rng.random() < 0.8 else int(rng.choice([3, 12, 40]))
                if named != 7:
                    detections.append(
                        {
                            "image_id": 100 + image,
                            "category_id": named,
                            "bbox": found,
                            "score": float(rng.choice([0.2, 0.4, 0.5, 0.7, 0.9])),
                            "segmentation": _rle(found, size),
                        }
                    )
    data = {
        "images": [
            {"id": 100 + i, "height": size[0], "width": size[1], "file_name": f"{i}.jpg"}
            for i in range(images)
        ],
        "categories": [{"id": i, "name": name} for i, name in LABELS.items()],
        "annotations": annotations,
    }
    return data, detections


@pytest.fixture
def make_coco() -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """``random_coco(seed, images=12) -> (ground truth, detections)``."""
    return random_coco


@pytest.fixture
def vocabulary() -> Vocabulary:
    """The classes of ``make_coco`` in another order than in the file or by id."""
    names = ("dog", "cup", "cat", "kite", "ball")
    return Vocabulary(tuple(Category(name, seen=name in SEEN) for name in names))


@pytest.fixture
def outputs() -> Callable[..., list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Turn COCO results into what a Detectron2 model returns, one (input, output) an image."""

    def convert(
        data: dict[str, Any], detections: list[dict[str, Any]], labels: Sequence[str], masks: bool
    ) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        import torch
        from detectron2.structures import Boxes, Instances

        names = {entry["id"]: entry["name"] for entry in data["categories"]}
        pairs = []
        for image in data["images"]:
            size = (image["height"], image["width"])
            mine = [d for d in detections if d["image_id"] == image["id"]]
            instances = Instances(size)
            boxes = torch.tensor([d["bbox"] for d in mine], dtype=torch.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes)
            instances.scores = torch.tensor([d["score"] for d in mine])
            classes = [labels.index(names[d["category_id"]]) for d in mine]
            instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
            if masks:
                decoded = [torch.from_numpy(mask_util.decode(d["segmentation"])) for d in mine]
                instances.pred_masks = (
                    torch.stack(decoded).bool() if mine else torch.zeros(0, *size, dtype=torch.bool)
                )
            pairs.append(({"image_id": image["id"]}, {"instances": instances}))
        return pairs

    return convert


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[Any], Path]:
    """Write a value as a JSON file and return its path."""

    def write(data: Any) -> Path:
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(data), encoding="utf-8")
        return path

    return write


@pytest.fixture
def new_processes() -> Callable[[], list[Any]]:
    """Tells the children of this process that are alive and were not before the test."""
    before = multiprocessing.active_children()
    return lambda: [child for child in multiprocessing.active_children() if child not in before]
