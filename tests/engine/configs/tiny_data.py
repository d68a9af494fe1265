# Twelve small pictures with one or two boxes each, drawn into the folder `root`.
import os
import time

import numpy as np
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from PIL import Image

from densedet.data.loader import build_test_loader, build_train_loader


def draw(root, number):
    """Draw picture `number` and return its record."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 60, (64, 64, 3), dtype=np.uint8)
    annotations = []
    for _ in range(1 + number % 2):
        x, y = (int(v) for v in generator.integers(0, 30, 2))
        w, h = (int(v) for v in generator.integers(16, 30, 2))
        category = int(generator.integers(2))
        pixels[y : y + h, x : x + w, category] = 255
        annotations.append(
            {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
        )
    file = os.path.join(root, f"{number}.png")
    if not os.path.exists(file):
        Image.fromarray(pixels).save(f"{file}.{os.getpid()}", format="png")
        os.replace(f"{file}.{os.getpid()}", file)
    return {
        "file_name": file,
        "image_id": number,
        "height": 64,
        "width": 64,
        "annotations": annotations,
    }


def register_tiny(root, count=12):
    """Register "tiny"; a second call replaces the first."""
    os.makedirs(root, exist_ok=True)
    if "tiny" in DatasetCatalog:
        DatasetCatalog.remove("tiny")
    DatasetCatalog.register("tiny", lambda: [draw(root, number) for number in range(count)])
    MetadataCatalog.get("tiny").thing_classes = ["red", "green"]


class CountingEvaluator(DatasetEvaluator):
    """Counts the pictures and sums up the scores of their instances, over all ranks."""

    def reset(self):
        self.ids, self.total = [], 0.0

    def process(self, inputs, outputs):
        self.ids += [one["image_id"] for one in inputs]
        self.total += sum(float(one["instances"].scores.sum()) for one in outputs)

    def evaluate(self):
        gathered = comm.gather((self.ids, self.total))
        if not comm.is_main_process():
            return None
        time.sleep(float(os.environ.get("TINY_SCORE_SECONDS", 0)))
        ids = sorted(number for part, _ in gathered for number in part)
        assert ids == list(range(12)), ids
        total = sum(part for _, part in gathered)
        return {"tiny": {"images": len(ids), "score": total, "undefined": float("nan")}}


dataloader = dict(
    register=[L(register_tiny)(root="???")],
    train=L(build_train_loader)(
        dataset=L(get_detection_dataset_dicts)(names="tiny"),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[
                L(T.ResizeScale)(min_scale=0.7, max_scale=1.3, target_height=64, target_width=64),
                L(T.RandomFlip)(),
                L(T.RandomBrightness)(intensity_min=0.8, intensity_max=1.2),
            ],
            image_format="RGB",
        ),
        total_batch_size=4,
    ),
    test=L(build_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="tiny", filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[], image_format="RGB"),
    ),
    evaluator=L(CountingEvaluator)(),
)
