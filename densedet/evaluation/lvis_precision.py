"""The precision of detections by LVIS's federated rules, a few classes at a time."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

from densedet.errors import DatasetError, InstallationError

Record = Mapping[str, Any]
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = 101
AREAS = ("all", "small", "medium", "large")
PAIRS_AT_ONCE = 50_000  # of images and classes; each takes some 300 bytes meanwhile

_IMAGE_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def federated_precision(
    gt: Record,
    detections: Iterable[Record],
    iou_type: str,
    category_ids: Sequence[int],
    max_dets: int,
) -> np.ndarray:
    """Precision of each class over the images in which LVIS knows whether it is there.

    LVIS (arXiv 1908.03195, section 3) verifies a class only on some images: where it is annotated,
    and where it is in ``neg_category_ids``. Elsewhere a detection of it counts neither way; in an
    image that has it in ``not_exhaustive_category_ids`` a detection without partner does not count
    either.

    A class sees no other, so faster-coco-eval matches a few at a time, on the images that matter to
    them: a table of all pairs of 1,203 classes and 19,809 images would take gigabytes.

    Args:
        gt: LVIS-format ground truth, every annotation with "area".
        detections: "image_id", "category_id", "score" and "bbox" (XYWH, pixels) or, for "segm",
            "segmentation" (RLE). Not modified.
        iou_type: "bbox" or "segm".
        category_ids: K ids, the order of the result.
        max_dets: detections considered per image, over all classes, the best ones.

    Returns:
        [T, R, K, A]: the 10 ``IOU_THRESHOLDS``, 101 recall levels and the ``AREAS``; -1 where a
        class has no ground truth.

    Raises:
        DatasetError: an image lacks one of the two lists.
        InstallationError: faster-coco-eval is not installed.
    """
    images = {image["id"]: image for image in gt["images"]}
    known = _known_pairs(gt)
    truth: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    found: defaultdict[int, list[Record]] = defaultdict(list)
    for annotation in gt["annotations"]:
        # crowds are no part of the format: lvis takes one for an object
        truth[annotation["category_id"]].append({**annotation, "iscrowd": 0})
    for detection in _best(detections, max_dets):
        if (detection["image_id"], detection["category_id"]) in known:
            found[detection["category_id"]].append(detection)
    shape = (len(IOU_THRESHOLDS), RECALL_LEVELS, len(category_ids), len(AREAS))
    precision = np.full(shape, -1.0)
    position = {category_id: k for k, category_id in enumerate(category_ids)}
    for group, image_ids in _groups([c for c in category_ids if truth[c]], truth, found):
        results = _results([d for c in group for d in found[c]], iou_type)
        objects = [a for c in group for a in truth[c]]
        used = [images[i] for i in sorted(image_ids)]
        columns = [position[c] for c in group]
        precision[:, :, columns] = _match(used, group, objects, results, iou_type, max_dets)
    return precision


def check_lists(gt: Record, name: str) -> None:
    """Check that the images of a ground truth, called ``name``, have LVIS's two lists.

    Raises:
        DatasetError: one has not.
    """
    for image in gt["images"]:
        for key in _IMAGE_LISTS:
            if not isinstance(image.get(key), list):
                raise DatasetError(
                    f"image {image['id']} of {name} has no list {key!r}: this is no LVIS-format "
                    "file; evaluate it with OpenVocabularyCOCOEvaluator"
                )


def _groups(
    category_ids: Sequence[int],
    truth: Mapping[int, list[dict[str, Any]]],
    found: Mapping[int, list[Record]],
) -> Iterator[tuple[list[int], set[Any]]]:
    """Classes, ascending, and the images of their objects and detections: few pairs at a time."""
    group: list[int] = []
    image_ids: set[Any] = set()
    for category_id in sorted(category_ids):
        own = {record["image_id"] for record in (*truth[category_id], *found[category_id])}
        if group and len(image_ids | own) * (len(group) + 1) > PAIRS_AT_ONCE:
            yield group, image_ids
            group, image_ids = [], set()
        group.append(category_id)
        image_ids |= own
    if group:
        yield group, image_ids


def _known_pairs(gt: Record) -> Collection[tuple[Any, int]]:
    """(image id, category id) of all that is annotated or known to be absent."""
    check_lists(gt, "the ground truth")
    pairs = {(a["image_id"], a["category_id"]) for a in gt["annotations"]}
    for image in gt["images"]:
        pairs.update((image["id"], category_id) for category_id in image["neg_category_ids"])
    return pairs


def _best(detections: Iterable[Record], limit: int) -> list[Record]:
    """The best ``limit`` detections of each image; of equal ones the first."""
    images: defaultdict[Any, list[Record]] = defaultdict(list)
    for detection in detections:
        images[detection["image_id"]].append(detection)
    best: list[Record] = []
    for some in images.values():
        if len(some) > limit:
            some = sorted(some, key=lambda detection: -detection["score"])[:limit]
        best.extend(some)
    return best


def _results(detections: Sequence[Record], iou_type: str) -> list[dict[str, Any]]:
    """What the matching needs of each detection; its area is that of its box or of its mask."""
    part = "bbox" if iou_type == "bbox" else "segmentation"
    shapes = [detection[part] for detection in detections]
    if iou_type == "bbox":
        areas = [shape[2] * shape[3] for shape in shapes]
    else:
        # one by one: pycocotools takes 255 masks at most
        areas = [int(mask_util.area(shape)) for shape in shapes]
    kept = ("image_id", "category_id", "score", part)
    return [
        {**{key: detection[key] for key in kept}, "id": i, "area": area, "iscrowd": 0}
        for i, (detection, area) in enumerate(zip(detections, areas, strict=True), 1)
    ]


def _match(
    images: list[Record],
    category_ids: list[int],
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    iou_type: str,
    max_dets: int,
) -> np.ndarray:
    """[T, R, K, A] of some classes, ascending."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise InstallationError(
            "the evaluation on LVIS needs faster-coco-eval: pip install 'faster-coco-eval>=1.8'"
        ) from error
    # it would sort the classes by frequency, which is done elsewhere, by the vocabulary
    categories = [{"id": i, "name": "", "frequency": "f"} for i in category_ids]
    outline = {"images": images, "categories": categories}
    sides = [COCO({**outline, "annotations": records}) for records in (truth, found)]
    evaluation = COCOeval_faster(*sides, iou_type, lvis_style=True)
    evaluation.params.maxDets = [max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: np.ndarray = evaluation.eval["precision"][..., 0]
    return precision
