"""Masks as COCO's run lengths."""

from typing import Any

import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from numpy.typing import NDArray
from pycocotools import mask as mask_util
from torch import Tensor

_SMALL = 200 * 200  # pixels, of which pycocotools looks at all in less time


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """(H, W) to COCO's compressed run lengths, of large images from the covered part alone.

    The same as pycocotools' ``encode``, which wants all pixels anew, column by column.

    Args:
        mask: (H, W) bool on the CPU.

    Returns:
        "size", [H, W], and "counts", text.
    """
    pixels = mask.numpy().astype(bool, copy=False)
    size = [int(side) for side in pixels.shape]
    if pixels.size <= _SMALL:
        rle = mask_util.encode(np.asfortranarray(pixels, dtype=np.uint8))
        return {"size": size, "counts": rle["counts"].decode("ascii")}
    counts = _counts(pixels)
    rle = mask_util.frPyObjects({"size": size, "counts": counts.tolist()}, *size)
    return {"size": size, "counts": rle["counts"].decode("ascii")}


def _counts(pixels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many pixels are outside, inside, outside ..., down one column after the other."""
    height, width = pixels.shape
    rows = np.flatnonzero(pixels.any(axis=1))
    if not len(rows):
        return np.array([height * width])
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(pixels[top:bottom].any(axis=0))
    left, right = columns[0], columns[-1] + 1
    part = np.zeros((right - left, bottom - top + 2), dtype=bool)  # an edge before and behind
    part[:, 1:-1] = pixels[top:bottom, left:right].T
    column, row = np.nonzero(part[:, 1:] != part[:, :-1])
    edges = (left + column) * height + top + row
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # a run goes on in the next column
    if len(joined):
        edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(edges, prepend=0)
    rest = height * width - edges[-1]
    return np.append(counts, rest) if rest else counts


def detection_records(instances: Instances, image_id: Any) -> list[dict[str, Any]]:
    """Detectron2's `instances_to_coco_json`, with masks by `run_lengths`.

    Args:
        instances: on the CPU.
        image_id: of the image.
    """
    fields = dict(instances.get_fields())
    masks = fields.pop("pred_masks", None)
    records: list[dict[str, Any]] = instances_to_coco_json(
        Instances(instances.image_size, **fields), image_id
    )
    if masks is not None:
        for record, mask in zip(records, masks, strict=True):
            record["segmentation"] = run_lengths(mask)
    return records
