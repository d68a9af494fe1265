"""Synthetic ground truth and detections, always the same, in COCO's and in LVIS's format."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

from densedet.benchmark.machine import positive

_CORNERS = 24  # of a polygon
_CLOSE = 0.06  # of a box's side: how far a detection is from its object
_RIGHT = 0.8  # of the detections of an object have its class
_FREQUENCIES = "rccff"
_NEGATIVES = 10  # classes of an image that LVIS knows to be absent


@dataclass(frozen=True)
class DetectionSizes:
    """What is evaluated.

    Attributes:
        images: number of images.
        height, width: of an image, pixels.
        objects: in an image.
        detections: in an image.
        classes: of the vocabulary.

    Raises:
        ConfigError: a number is below 1.
    """

    images: int
    objects: int
    detections: int
    classes: int
    height: int = 480
    width: int = 640

    def __post_init__(self) -> None:
        positive(images=self.images, objects=self.objects, detections=self.detections)
        positive(classes=self.classes, height=self.height, width=self.width)


def make_detections(
    sizes: DetectionSizes, federated: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth with polygons and detections with run lengths, both with boxes.

    Half of the detections are near an object, most of those with its class; the others are
    anywhere, with any class. Where the truth is COCO's, every twentieth object is a crowd.

    Args:
        sizes: how much of everything.
        federated: LVIS's format, with frequencies, absent and not exhaustively annotated classes.
    """
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": i + 1, "name": f"class {i}", "frequency": _FREQUENCIES[i % len(_FREQUENCIES)]}
            for i in range(sizes.classes)
        ],
    }
    detections: list[dict[str, Any]] = []
    for number in range(1, sizes.images + 1):
        boxes, classes = _random_boxes(rng, sizes, sizes.objects), _classes(rng, sizes)
        image: dict[str, Any] = {"id": number, "height": sizes.height, "width": sizes.width}
        if federated:
            image["neg_category_ids"] = sorted(
                set(_classes(rng, sizes)[:_NEGATIVES]) - set(classes)
            )
            image["not_exhaustive_category_ids"] = classes[:1]
        data["images"].append(image)
        for box, category in zip(boxes, classes, strict=True):
            entry = _annotation(image, box, category, len(data["annotations"]) + 1)
            if not federated:
                crowd = entry["iscrowd"] = int(rng.random() < 0.05)
                entry["segmentation"] = entry["segmentation"] if not crowd else _rle(box, image)
            data["annotations"].append(entry)
        detections += _detect(rng, sizes, image, boxes, classes)
    return data, detections


def _classes(rng: np.random.Generator, sizes: DetectionSizes) -> list[int]:
    ids: list[int] = rng.integers(1, sizes.classes + 1, sizes.objects).tolist()
    return ids


def _random_boxes(
    rng: np.random.Generator, sizes: DetectionSizes, count: int
) -> NDArray[np.float64]:
    """[count, 4]: XYWH, small and large ones."""
    whole = np.array([sizes.width, sizes.height])
    sides = whole * np.exp(rng.uniform(np.log(0.03), np.log(0.7), (count, 2)))
    return np.concatenate([rng.uniform(0, 1, (count, 2)) * (whole - sides), sides], 1)


def _polygon(box: NDArray[np.float64]) -> list[float]:
    """An ellipse in a box."""
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    x, y = (box[i] + box[i + 2] * (1 + turn(angles)) / 2 for i, turn in enumerate((np.cos, np.sin)))
    corners: list[float] = np.stack([x, y], 1).ravel().round(2).tolist()
    return corners


def _rle(box: NDArray[np.float64], image: dict[str, Any]) -> dict[str, Any]:
    (found,) = mask_util.frPyObjects([_polygon(box)], image["height"], image["width"])
    return {"size": found["size"], "counts": found["counts"].decode("ascii")}


def _annotation(
    image: dict[str, Any], box: NDArray[np.float64], category: int, number: int
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image["id"],
        "category_id": category,
        "bbox": box.round(2).tolist(),
        "area": float(np.pi / 4 * box[2] * box[3]),
        "segmentation": [_polygon(box)],
    }


def _detect(
    rng: np.random.Generator,
    sizes: DetectionSizes,
    image: dict[str, Any],
    boxes: NDArray[np.float64],
    classes: list[int],
) -> list[dict[str, Any]]:
    near = rng.integers(0, len(boxes), sizes.detections // 2)
    shifts = rng.normal(0, _CLOSE, (len(near), 4)) * np.tile(boxes[near, 2:], 2)
    anywhere = _random_boxes(rng, sizes, sizes.detections - len(near))
    found = np.concatenate([boxes[near] + shifts, anywhere])
    found[:, 2:] = found[:, 2:].clip(2)
    named = rng.integers(1, sizes.classes + 1, sizes.detections)
    right = np.flatnonzero(rng.random(len(near)) < _RIGHT)
    named[right] = np.array(classes)[near[right]]
    scores = rng.random(sizes.detections)
    scores[: len(near)] = np.sqrt(scores[: len(near)])
    return [
        {
            "image_id": image["id"],
            "category_id": int(category),
            "score": float(score),
            "bbox": box.round(2).tolist(),
            "segmentation": _rle(box, image),
        }
        for box, category, score in zip(found, named, scores, strict=True)
    ]
