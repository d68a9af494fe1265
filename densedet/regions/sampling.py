"""Choosing the regions of an image on which CLIPSelf (arXiv 2310.01403) learns.

The random choices are numpy's global generator's, which the training loader seeds for each sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from densedet.errors import ConfigError, DatasetError
from densedet.regions.crops import crop_rectangles

_XYXY, _XYWH = 0, 1  # Detectron2's BoxMode
_SIDES_RATIO = 2  # of rows and columns, at most


@dataclass(frozen=True)
class Regions:
    """Regions of one image, in pixels of the image as it is in its file.

    Attributes:
        boxes: float32 ``[K, 4]``, (x0, y0, x1, y1): what the student's dense map is pooled over.
        rectangles: int64 ``[K, 4]``, (left, upper, right, lower): what the teacher sees.
        labels: int64 ``[K]``, class indices; None where the source has none.
    """

    boxes: Tensor
    rectangles: Tensor
    labels: Tensor | None = None


def grid_splits(max_split: int = 6) -> tuple[tuple[int, int], ...]:
    """The (rows, columns) into which an image may be split: neither more than twice the other.

    Row numbers 1 to ``max_split``, with each of them the column numbers in order: 24 pairs for 6.
    """
    return tuple(
        (rows, columns)
        for rows in range(1, max_split + 1)
        for columns in range(
            math.ceil(rows / _SIDES_RATIO), min(_SIDES_RATIO * rows, max_split) + 1
        )
    )


def grid_cells(image_size: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Equal cells of an image, row by row.

    Args:
        image_size: (height, width) in pixels.
        rows: number of rows.
        columns: number of columns.

    Returns:
        float32 ``[rows * columns, 4]``, (x0, y0, x1, y1) in pixels.
    """
    height, width = image_size
    y = torch.linspace(0, height, rows + 1)
    x = torch.linspace(0, width, columns + 1)
    top, left = torch.meshgrid(y[:-1], x[:-1], indexing="ij")
    bottom, right = torch.meshgrid(y[1:], x[1:], indexing="ij")
    return torch.stack([left, top, right, bottom], dim=2).flatten(0, 1)


class GridRegions:
    """Cells of a random split of the image, in random order, for student and teacher alike.

    Args:
        max_split: the largest number of rows and of columns.
        max_regions: cells that are kept.
        max_cells: leaves out the splits into more cells than this; None leaves out none.

    Raises:
        ConfigError: an argument is below 1.
    """

    def __init__(
        self, max_split: int = 6, max_regions: int = 20, max_cells: int | None = None
    ) -> None:
        if min(max_split, max_regions, max_split if max_cells is None else max_cells) < 1:
            raise ConfigError(
                f"max_split={max_split}, max_regions={max_regions}, max_cells={max_cells}: each "
                "must be at least 1"
            )
        self.splits = [
            (rows, columns)
            for rows, columns in grid_splits(max_split)
            if max_cells is None or rows * columns <= max_cells
        ]
        self.max_regions = max_regions

    def __call__(self, record: Mapping[str, Any], image_size: tuple[int, int]) -> Regions:
        """Draw the regions of an image.

        Args:
            record: not looked at.
            image_size: (height, width) in pixels.
        """
        rows, columns = self.splits[np.random.randint(len(self.splits))]
        order = np.random.permutation(rows * columns)[: self.max_regions]
        boxes = grid_cells(image_size, rows, columns)[torch.from_numpy(order)]
        return Regions(boxes, crop_rectangles(boxes, image_size))


class BoxRegions:
    """Boxes of the record: its annotations without the crowds, or its region proposals.

    In this order: the boxes are shuffled, the first ``max_regions`` are taken, and those of another
    area than allowed are dropped, so that fewer may remain. If none does, the upper left sixteenth
    of the image, (0, 0, w // 4, h // 4), at least a pixel wide and high and not enlarged, is the
    only region, with label -1.

    The defaults are CLIPSelf's for proposals, which it reads as annotations. For its RegionCLIP
    baseline: ``shuffle=False, enlarge=1, min_area=0, max_area=inf``.

    Args:
        source: "annotations", or "proposals": Detectron2's ``proposal_boxes``.
        max_regions: boxes that are taken.
        enlarge: factor on the sides of what the teacher sees, about the centre of the box.
        min_area: square pixels of the image.
        max_area: likewise.
        shuffle: False takes the boxes in the order of the record.

    Raises:
        ConfigError: an unknown source, or a number out of its range.
    """

    def __init__(
        self,
        source: Literal["annotations", "proposals"] = "annotations",
        max_regions: int = 20,
        enlarge: float = 1.5,
        min_area: float = 64.0,
        max_area: float = 1024.0**2,
        shuffle: bool = True,
    ) -> None:
        if source not in ("annotations", "proposals"):
            raise ConfigError(f"source {source!r}: choose 'annotations' or 'proposals'")
        if max_regions < 1 or enlarge <= 0 or not min_area <= max_area:
            raise ConfigError(
                f"max_regions={max_regions}, enlarge={enlarge}, min_area={min_area}, "
                f"max_area={max_area}: take at least one region, a positive factor and an area "
                "range that is not empty"
            )
        self.source = source
        self.max_regions = max_regions
        self.enlarge = enlarge
        self.min_area, self.max_area = min_area, max_area
        self.shuffle = shuffle

    def __call__(self, record: Mapping[str, Any], image_size: tuple[int, int]) -> Regions:
        """Choose the regions of an image.

        Args:
            record: in Detectron2's format.
            image_size: (height, width) in pixels.

        Raises:
            DatasetError: the record lacks the boxes, or they are of another format or not finite.
        """
        boxes, labels = _annotations(record) if self.source == "annotations" else _proposals(record)
        order = np.random.permutation(len(boxes)) if self.shuffle else np.arange(len(boxes))
        order = order[: self.max_regions]
        area = boxes[order, 2] * boxes[order, 3]
        order = order[(area >= self.min_area) & (area <= self.max_area)]
        if not len(order):
            return _fallback(image_size, labels is not None)
        chosen = torch.from_numpy(boxes[order])
        chosen[:, 2:] += chosen[:, :2]
        rectangles = crop_rectangles(chosen, image_size, self.enlarge)
        kept = None if labels is None else torch.from_numpy(labels[order])
        return Regions(chosen.float(), rectangles, kept)


def _fallback(image_size: tuple[int, int], labelled: bool) -> Regions:
    height, width = image_size
    box = torch.tensor([[0.0, 0.0, max(1, width // 4), max(1, height // 4)]])
    labels = torch.tensor([-1]) if labelled else None
    return Regions(box, crop_rectangles(box, image_size), labels)


def _annotations(record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Float64 ``[K, 4]`` (x, y, width, height) and int64 ``[K]`` categories, without crowds."""
    annotations = record.get("annotations")
    if annotations is None:
        raise _error(record, "no 'annotations'", "register the data set with its annotation file")
    kept = [a for a in annotations if not a.get("iscrowd", 0)]
    boxes = [_xywh(record, [a["bbox"]], a["bbox_mode"]) for a in kept]
    labels = np.array([a["category_id"] for a in kept], dtype=np.int64)
    return np.concatenate([np.zeros((0, 4)), *boxes]), labels


def _proposals(record: Mapping[str, Any]) -> tuple[np.ndarray, None]:
    if "proposal_boxes" not in record:
        raise _error(
            record,
            "no 'proposal_boxes'",
            "register the data set with a proposal_file, or use source='annotations'",
        )
    return _xywh(record, record["proposal_boxes"], record.get("proposal_bbox_mode", _XYXY)), None


def _xywh(record: Mapping[str, Any], boxes: Sequence[Any] | np.ndarray, mode: int) -> np.ndarray:
    """Boxes of a format of Detectron2 -> float64 ``[K, 4]`` (x, y, width, height)."""
    if mode not in (_XYXY, _XYWH):
        raise _error(record, f"boxes of mode {mode!r}", "convert them to XYWH_ABS or XYXY_ABS")
    found = np.array(boxes, dtype=np.float64)
    if found.size == 0:
        return np.zeros((0, 4))
    if found.shape[1:] != (4,):
        raise _error(record, f"boxes of shape {found.shape}", "give [K, 4]")
    if not np.isfinite(found).all():
        raise _error(record, "boxes that are not finite", "mend the file that they come from")
    if mode == _XYXY:
        found[:, 2:] -= found[:, :2]
    return found


def _error(record: Mapping[str, Any], what: str, remedy: str) -> DatasetError:
    return DatasetError(f"the record of image {record.get('file_name', '?')} has {what}; {remedy}")
