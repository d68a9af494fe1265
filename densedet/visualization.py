"""Drawing detections with Detectron2's visualizer."""

import colorsys
import hashlib
from typing import Any

import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from numpy.typing import NDArray


def label_colour(label: str) -> tuple[float, float, float]:
    """RGB in 0..1 that depends on the label alone, so that pictures can be compared."""
    hue = int.from_bytes(hashlib.sha256(label.encode()).digest()[:2], "big") / 65536
    return colorsys.hsv_to_rgb(hue, 0.85, 1.0)


def draw_detections(
    image: NDArray[np.uint8],
    instances: Instances,
    labels: tuple[str, ...],
    smallest_side: int = 640,
) -> NDArray[np.uint8]:
    """Draw boxes, masks and "label 87%" over a picture.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: detections on the CPU.
        labels: of the classes.
        smallest_side: smaller pictures are enlarged, so that the text can be read.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    scale = max(1.0, smallest_side / min(image.shape[:2]))
    names = [labels[i] for i in instances.pred_classes.tolist()]
    texts = [f"{n} {s:.0%}" for n, s in zip(names, instances.scores.tolist(), strict=True)]
    masks: Any = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    drawn = Visualizer(image, scale=scale).overlay_instances(
        boxes=instances.pred_boxes,
        masks=masks,
        labels=texts,
        assigned_colors=[label_colour(name) for name in names],
        alpha=0.2,
    )
    return drawn.get_image()
