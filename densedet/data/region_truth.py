"""Ground-truth regions of panoptic data, as CLIPSelf classifies them (arXiv 2310.01403)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from densedet.data.images import check_image_size, size_remedy
from densedet.data.orientation import read_pixels
from densedet.data.segment_map import read_segment_map
from densedet.errors import DatasetError
from densedet.regions.crops import crop_rectangles
from densedet.regions.masks import mask_cells

MIN_AREA, MAX_AREA = 8.0**2, 1024.0**2
_KEYS = ("id", "category_id", "isthing")
_CHUNK = 1 << 25  # pixels of the masks that are held at once


class RegionTruthMapper:
    """From a record of panoptic data to an image with its labelled regions.

    The protocol: the first ``max_segments`` segments of an image in file order, crowds included. A
    thing's box is its ``bbox``; a stuff's is the tight box of its mask whose right and lower edges
    are the last pixels inside, so it is one pixel short. Boxes with an area outside 64 .. 1024^2
    pixels are dropped. Crops show things enlarged about the centre, and stuff tight.

    Args:
        size: side of the square that the model resizes and pads the image to.
        stride: pixels of that square per cell of the dense map.
        crop_enlarge: factor on the sides of a thing's crop; 1.5 in CLIPSelf.
        max_segments: segments considered in an image.
        mask_antialias: see :func:`densedet.regions.masks.mask_cells`; off in CLIPSelf.
        apply_exif: see :class:`densedet.data.DetectionMapper`; segment maps are never turned.
    """

    def __init__(
        self,
        size: int,
        stride: int,
        crop_enlarge: float = 1.5,
        max_segments: int = 100,
        mask_antialias: bool = False,
        apply_exif: bool = True,
    ) -> None:
        self.size = size
        self.stride = stride
        self.crop_enlarge = crop_enlarge
        self.max_segments = max_segments
        self.mask_antialias = mask_antialias
        self.apply_exif = apply_exif

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: of Detectron2's standard panoptic format, with ``category_id`` the index
                in the vocabulary; not modified.

        Returns:
            "image", ``[3, H, W]`` uint8 RGB of the original size; "regions", ``[K, 4]`` float32
            (x0, y0, x1, y1) in its pixels; "crop_rectangles", ``[K, 4]`` int64; "cells",
            ``[K, g, g]`` bool; "labels", ``[K]`` int64; "is_thing", ``[K]`` bool; "mask_antialias";
            "file_name", "image_id", "height" and "width". K may be 0.

        Raises:
            ImageError: the image or the segment map is missing, truncated or not an image.
            DatasetError: the sizes differ, or a segment lacks a key or is not in the map.
        """
        image = read_pixels(dataset_dict["file_name"], self.apply_exif)
        height, width = image.shape[:2]
        check_image_size(dataset_dict, width, height)
        segment_map = read_segments(dataset_dict, width, height)
        segments = dataset_dict["segments_info"][: self.max_segments]
        check_segments(segments, dataset_dict["pan_seg_file_name"])
        boxes, cells = self._boxes_and_cells(segment_map, segments, dataset_dict)
        kept = _area_is_allowed(boxes)
        is_thing = torch.tensor([bool(s["isthing"]) for s in segments], dtype=torch.bool)[kept]
        labels = torch.tensor([s["category_id"] for s in segments], dtype=torch.int64)[kept]
        boxes = boxes[kept]
        return {
            "image": torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))),
            "regions": boxes,
            "crop_rectangles": self._crops(boxes, is_thing, (height, width)),
            "cells": cells[kept],
            "labels": labels,
            "is_thing": is_thing,
            "mask_antialias": self.mask_antialias,
            "file_name": dataset_dict["file_name"],
            "image_id": dataset_dict["image_id"],
            "height": height,
            "width": width,
        }

    def _boxes_and_cells(
        self, segment_map: Tensor, segments: Sequence[dict[str, Any]], record: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """``[K, 4]`` float32 and ``[K, g, g]`` bool of the segments, a few at a time."""
        grid = self.size // self.stride
        boxes = torch.zeros(len(segments), 4)
        cells = torch.zeros(len(segments), grid, grid, dtype=torch.bool)
        ids = torch.tensor([segment["id"] for segment in segments], dtype=torch.int32)
        step = max(1, _CHUNK // segment_map.numel())
        for part in torch.arange(len(segments)).split(step):
            masks = segment_map == ids[part, None, None]
            absent = ids[part][~masks.flatten(1).any(dim=1)].tolist()
            if absent:
                raise DatasetError(
                    f"segment map {record['pan_seg_file_name']} has no pixel of segment "
                    f"{absent[0]}, which the annotation file lists; they belong to different "
                    "versions of the data set: fetch both again"
                )
            boxes[part] = _last_inside_boxes(masks)
            cells[part] = mask_cells(masks, self.size, self.stride, self.mask_antialias)
        for row, segment in enumerate(segments):
            if segment["isthing"]:
                boxes[row] = _thing_box(segment, boxes[row])
        return boxes, cells

    def _crops(self, boxes: Tensor, is_thing: Tensor, image_size: tuple[int, int]) -> Tensor:
        enlarged = crop_rectangles(boxes, image_size, self.crop_enlarge)
        return torch.where(is_thing[:, None], enlarged, crop_rectangles(boxes, image_size))


def read_segments(record: dict[str, Any], width: int, height: int) -> Tensor:
    """The segment id of each pixel ``[H, W]`` int32, of the size of the image.

    Raises:
        ImageError: the segment map of the record is missing, truncated or not an image.
        DatasetError: it is not ``width`` x ``height`` pixels, as its image is.
    """
    path = record["pan_seg_file_name"]
    ids = read_segment_map(path)
    if ids.shape != (height, width):
        raise DatasetError(
            f"image {record['file_name']} is {width}x{height} pixels (width x height), but its "
            f"segment map {path} is {ids.shape[1]}x{ids.shape[0]}; "
            f"{size_remedy(record['file_name'], ids.shape[::-1], (width, height))}"
        )
    return torch.from_numpy(ids.astype(np.int32))


def check_segments(segments: Sequence[dict[str, Any]], path: str) -> None:
    """Raise DatasetError if a segment of the map ``path`` lacks a key of the standard format."""
    for segment in segments:
        missing = [key for key in _KEYS if key not in segment]
        if missing:
            raise DatasetError(
                f"segment {segment.get('id', segment)!r} of {path} lacks {', '.join(missing)} in "
                "segments_info; register the data set with "
                "densedet.data.register_panoptic_format"
            )


def _thing_box(segment: dict[str, Any], inside: Tensor) -> Tensor:
    """(x0, y0, x1, y1) of a thing, from its record or else from the last pixels inside its mask."""
    if "bbox" not in segment:
        return inside + torch.tensor([0.0, 0.0, 1.0, 1.0])
    x, y, width, height = segment["bbox"]
    return torch.tensor([x, y, x + width, y + height], dtype=torch.float32)


def _last_inside_boxes(masks: Tensor) -> Tensor:
    """First and last column and row inside each mask, (x0, y0, x1, y1): ``[K, 4]`` float32."""
    edges = []
    for inside in (masks.any(dim=1), masks.any(dim=2)):
        inside = inside.to(torch.uint8)
        last = inside.shape[1] - 1 - inside.flip(1).argmax(dim=1)
        edges.append((inside.argmax(dim=1), last))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], dim=1).to(torch.float32)


def _area_is_allowed(boxes: Tensor) -> Tensor:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return (area >= MIN_AREA) & (area <= MAX_AREA)
