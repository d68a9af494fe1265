"""COCO-format ground truth, the part of it that a vocabulary is evaluated on, and its metadata."""

import contextlib
import io
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pycocotools.mask as mask_util
from detectron2.data.catalog import DatasetCatalog, Metadata, MetadataCatalog
from pycocotools.coco import COCO

from densedet.data.annotation_table import LVIS_LISTS
from densedet.data.table_cache import annotation_table
from densedet.errors import DatasetError

logger = logging.getLogger(__name__)


def restrict_ground_truth(
    data: Mapping[str, Any], labels: Sequence[str], *, annotated_only: bool = False
) -> tuple[dict[str, Any], list[int]]:
    """Keep the categories with the given names, and make the rest fit for pycocotools.

    OV-COCO tests 65 of COCO's 80 classes: the annotations of the others go, and with
    ``annotated_only`` the images that have none left, on which there could only be false positives
    (4,836 of the 5,000 validation images stay). Labels that the file lacks get a category without
    annotations. Annotations are numbered from 1 (pycocotools takes an id of 0 for "no match"), and
    those without "iscrowd", or without an "area" that is a number from 0 on, get them (not a crowd;
    the area of the mask, or else of the box).

    Args:
        data: COCO-format ground truth; not modified.
        labels: K names, the order of the vocabulary.
        annotated_only: drop images without annotations (crowds count as annotations).

    Raises:
        DatasetError: an annotation belongs to an image that the data do not have.

    Returns:
        The restricted ground truth, and the K category ids in the order of ``labels``.
    """
    by_name = {str(entry["name"]).strip(): entry["id"] for entry in data["categories"]}
    first_free = max((entry["id"] for entry in data["categories"]), default=0) + 1
    ids = [by_name.get(label, first_free + i) for i, label in enumerate(labels)]
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    known = set(ids)
    kept = [a for a in data["annotations"] if a["category_id"] in known]
    for annotation in kept:
        if annotation["image_id"] not in sizes:
            raise DatasetError(
                f"annotation {annotation.get('id')} of the ground truth belongs to image "
                f"{annotation['image_id']}, which is not in 'images'; add the image or drop it"
            )
    annotations = [
        _complete({**annotation, "id": number}, sizes[annotation["image_id"]])
        for number, annotation in enumerate(kept, 1)
    ]
    annotated = {annotation["image_id"] for annotation in annotations}
    images = [i for i in data["images"] if not annotated_only or i["id"] in annotated]
    restricted = {
        "info": {},
        "images": images,
        "categories": [
            {"id": i, "name": label} for i, label in sorted(zip(ids, labels, strict=True))
        ],
        "annotations": annotations,
    }
    return restricted, ids


def registered_metadata(dataset_name: str) -> Metadata:
    """The metadata of a data set, with "vocabulary" and "json_file".

    Raises:
        DatasetError: the data set is not registered with them.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("vocabulary") is None or metadata.get("json_file") is None:
        raise DatasetError(
            f"data set {dataset_name!r} is not registered with a vocabulary; register it with "
            "densedet.data.register_coco_format, or register_all for OV-COCO and OV-LVIS"
        )
    return metadata


def checked_ground_truth(dataset_name: str) -> dict[str, Any]:
    """The ground truth of a registered data set, from the records that its loader checked.

    Args:
        dataset_name: registered by :func:`densedet.data.register_coco_format`.

    Returns:
        COCO-format ground truth, all categories of the file. Boxes without area are there, and
        boxes reach over the border, as in the file: the published evaluation counts both.

    Raises:
        DatasetError: the data set is not registered with a vocabulary, or what loading it raises.
    """
    metadata = registered_metadata(dataset_name)
    DatasetCatalog.get(dataset_name)  # its checks, with its options
    return _numbered(annotation_table(metadata.json_file, metadata.get("hint", "")).coco_data())


def _numbered(data: dict[str, Any]) -> dict[str, Any]:
    """With whole numbers as ids of categories, which the evaluations need; text is numbered."""
    if all(isinstance(category["id"], int) for category in data["categories"]):
        return data
    numbers = {category["id"]: i for i, category in enumerate(data["categories"], 1)}
    for category in data["categories"]:
        category["id"] = numbers[category["id"]]
    for annotation in data["annotations"]:
        annotation["category_id"] = numbers[annotation["category_id"]]
    for image in data["images"]:
        image |= {key: [numbers[i] for i in image[key]] for key in LVIS_LISTS if key in image}
    return data


def has_masks(gt: Mapping[str, Any], name: str) -> bool:
    """Whether an object of a ground truth, called ``name``, has a mask; says so if none has."""
    found = any(annotation.get("segmentation") for annotation in gt["annotations"])
    if not found:
        logger.warning("%s has no masks: only boxes are evaluated", name)
    return found


def check_masks(gt: Mapping[str, Any], name: str) -> None:
    """Check that every object of a ground truth, called ``name``, has a mask.

    Raises:
        DatasetError: some have none.
    """
    without = [a for a in gt["annotations"] if not a.get("segmentation")]
    if without:
        raise DatasetError(
            f"{len(without)} of {len(gt['annotations'])} objects of {name} have no segmentation, "
            f"the first is in image {without[0]['image_id']}; add their masks, or leave 'segm' out "
            "of the evaluator's tasks"
        )


def check_images(records: Sequence[Mapping[str, Any]], known: Collection[int], name: str) -> None:
    """Check that all detections are for images of the ground truth, called ``name``.

    Raises:
        DatasetError: one is not.
    """
    unknown = {record["image_id"] for record in records} - set(known)
    if unknown:
        raise DatasetError(
            f"there are detections for {len(unknown)} images that are not in {name}, such as image "
            f"{sorted(unknown)[0]}; evaluate them on the data set they were made from"
        )


def coco_api(data: Mapping[str, Any]) -> COCO:
    """pycocotools' index of a ground truth that is in memory; nothing is printed."""
    api = COCO()
    api.dataset = dict(data)
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def _complete(annotation: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    annotation.setdefault("iscrowd", 0)
    area: Any = annotation.get("area")
    if type(area) not in (int, float) or not 0 <= area < math.inf:
        mask = annotation.get("segmentation")
        box = annotation["bbox"]
        annotation["area"] = (_mask_area(mask, size) if mask else 0) or box[2] * box[3]
    return annotation


def _mask_area(mask: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> float:
    if isinstance(mask, dict) and not isinstance(mask["counts"], list):
        return float(mask_util.area(mask))
    encoded = mask_util.frPyObjects(mask, *size)
    return float(mask_util.area(mask_util.merge(encoded) if isinstance(encoded, list) else encoded))
