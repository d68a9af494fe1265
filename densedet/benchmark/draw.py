"""``draw``: detections drawn over an image.

"detectron2" is `densedet.visualization`, "fast" `densedet.drawing`, and the reference Detectron2's
own visualizer as it is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray

from densedet import drawing, visualization
from densedet.benchmark.machine import Settings, positive
from densedet.benchmark.timing import compare, row, time_in_turn

LABELS = ("cat", "dog", "remote control", "traffic light")


@dataclass(frozen=True)
class DrawSizes:
    """What is drawn.

    Attributes:
        detections: elliptic masks with their boxes, at random places.
        height, width: of the image, pixels.

    Raises:
        ConfigError: a size is not positive.
    """

    detections: int = 10
    height: int = 480
    width: int = 640

    def __post_init__(self) -> None:
        positive(detections=self.detections, height=self.height, width=self.width)

    def build(self) -> tuple[NDArray[np.uint8], Instances]:
        """An image (H, W, 3) of noise, and the detections."""
        generator = np.random.default_rng(0)
        size = (self.height, self.width)
        image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        ends = generator.uniform(0, 1, (self.detections, 2, 2)) * size[::-1]
        low, high = ends.min(axis=1), ends.max(axis=1)
        y, x = np.mgrid[: size[0], : size[1]]
        middle, radius = (low + high) / 2, (high - low) / 2 + 0.5
        away = ((x - middle[:, :1, None]) / radius[:, :1, None]) ** 2
        away += ((y - middle[:, 1:, None]) / radius[:, 1:, None]) ** 2
        found = Instances(size)
        found.pred_boxes = Boxes(torch.from_numpy(np.hstack([low, high])).float())
        found.pred_masks = torch.from_numpy(away < 1)
        found.scores = torch.linspace(0.3, 1, self.detections)
        found.pred_classes = torch.arange(self.detections) % len(LABELS)
        return image, found


def run_draw(settings: Settings, sizes: DrawSizes) -> dict[str, Any]:
    """Time the three in turn, on the same detections.

    Returns:
        For "detectron2" and "fast" what :func:`compare` gives; "different_pixels": of "detectron2"
        from the reference; and the sizes.
    """
    image, found = sizes.build()

    def reference() -> NDArray[np.uint8]:
        names = [LABELS[i] for i in found.pred_classes.tolist()]
        drawn = Visualizer(image, scale=max(1.0, 640 / min(image.shape[:2]))).overlay_instances(
            boxes=found.pred_boxes.tensor,
            masks=found.pred_masks.numpy(),
            labels=drawing.captions(names, found.scores.tolist()),
            assigned_colors=[drawing.label_colour(name) for name in names],
            alpha=0.2,
        )
        return np.asarray(drawn.get_image())

    sides = {
        "detectron2": lambda: visualization.draw_detections(image, found, LABELS),
        "fast": lambda: drawing.draw_detections(image, found, LABELS),
        "reference": reference,
    }
    different = (sides["detectron2"]() != reference()).any(axis=-1)
    times = time_in_turn(sides, settings.torch_device, settings.repeats, settings.warmup)
    return {
        **{name: compare(times[name], times["reference"]) for name in ("detectron2", "fast")},
        "different_pixels": int(different.sum()),
        "detections": sizes.detections,
        "height": sizes.height,
        "width": sizes.width,
    }


def draw_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    lines = []
    for name in ("detectron2", "fast"):
        seconds = {side: 1e3 * result[name][side]["median_s"] for side in ("ours", "reference")}
        lower, upper = result[name]["speedup_quartiles"]
        ratio = f"{result[name]['speedup']:.3g} (quartiles {lower:.3g} to {upper:.3g})"
        lines.append(row(f"--draw {name}, an image", seconds, "{:.3g} ms", ratio))
    return lines
