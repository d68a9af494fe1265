"""From a record of panoptic data to the input of a panoptic model."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from densedet.data.images import check_image_size
from densedet.data.orientation import read_pixels
from densedet.data.region_truth import check_segments, read_segments
from densedet.errors import ConfigError, DatasetError
from densedet.vocabulary import Vocabulary

_NONE = 255  # stands for no segment, as in Detectron2's transforms that pad
_Slots = Sequence[dict[str, Any] | None]


class PanopticMapper:
    """Reads an image and, in training, makes labels of pixels and of things from its segments.

    Segments of unseen categories are left out in training: their pixels are ignored, as those
    without a segment are, and they give no instance. Crowds label pixels, but are no instances.

    Args:
        is_train: whether to read segment maps.
        augmentations: applied in order, see :mod:`densedet.data.transforms`.
        vocabulary: of the data set; says which categories are unseen.
        ignore_value: label of the pixels that count nowhere.
        apply_exif: see :class:`densedet.data.DetectionMapper`; segment maps are never turned.

    Raises:
        ConfigError: ``ignore_value`` is the index of a category.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        vocabulary: Vocabulary,
        ignore_value: int = 255,
        *,
        apply_exif: bool = True,
    ) -> None:
        if 0 <= ignore_value < len(vocabulary):
            raise ConfigError(
                f"ignore_value={ignore_value} is the label of a category; give one from "
                f"{len(vocabulary)} on"
            )
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.vocabulary = vocabulary
        self.ignore_value = ignore_value
        self.apply_exif = apply_exif

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: of Detectron2's standard panoptic format, with ``category_id`` the index
                in the vocabulary; not modified.

        Returns:
            The record with "image", (3, H, W) uint8 RGB, and in training instead of
            "segments_info" "sem_seg", (H, W) int64, and "instances" (``gt_boxes``, tight;
            ``gt_classes``, ``gt_masks``), all with indices of the vocabulary. "height" and "width"
            are those of the file.

        Raises:
            ImageError: the image or the segment map is missing, truncated or not an image.
            DatasetError: the sizes differ, or a segment lacks a key or has no category.
        """
        record = copy.deepcopy(dataset_dict)
        image = read_pixels(record["file_name"], self.apply_exif)
        height, width = image.shape[:2]
        check_image_size(record, width, height)
        record["width"], record["height"] = width, height
        slots = _slots(self._segments(record)) if self.is_train else []
        numbers = _number(record, slots, width, height) if self.is_train else None
        aug_input = T.AugInput(image, sem_seg=numbers)
        self.augmentations(aug_input)
        record["image"] = torch.as_tensor(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if self.is_train:
            found = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
            record["sem_seg"] = self._labels(found, slots)
            record["instances"] = _instances(found, slots)
        return record

    def _segments(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """The segments that are trained on; removes all of them from the record."""
        path, segments = record["pan_seg_file_name"], record.pop("segments_info")
        check_segments(segments, path)
        count = len(self.vocabulary)
        for segment in segments:
            if not 0 <= segment["category_id"] < count:
                raise DatasetError(
                    f"segment {segment['id']} of {path} has the category {segment['category_id']}, "
                    f"but the mapper's vocabulary has {count}; give it that of the data set"
                )
        return [s for s in segments if self.vocabulary.seen[s["category_id"]]]

    def _labels(self, numbers: Tensor, slots: _Slots) -> Tensor:
        """``[H, W]``: the category of each pixel, given the number of its segment."""
        categories = [self.ignore_value if s is None else s["category_id"] for s in slots]
        return torch.tensor(categories)[numbers]


def _slots(segments: list[dict[str, Any]]) -> _Slots:
    """The segments by their numbers; 255 is none of them."""
    free = [None] * (_NONE - len(segments))
    return [*segments[:_NONE], *free, None, *segments[_NONE:]]


def _number(record: dict[str, Any], slots: _Slots, width: int, height: int) -> np.ndarray:
    """``[H, W]``: the number of each pixel's segment."""
    ids = read_segments(record, width, height).numpy()
    # the transforms of Detectron2 that resize take 8 bits or floating point
    numbers = np.full(ids.shape, _NONE, dtype=np.uint8 if len(slots) <= 256 else np.float32)
    known = sorted((s["id"], number) for number, s in enumerate(slots) if s is not None)
    if not known:
        return numbers
    sorted_ids, order = np.array(known).T
    place = np.searchsorted(sorted_ids, ids).clip(max=len(known) - 1)
    inside = sorted_ids[place] == ids
    numbers[inside] = order[place[inside]]
    return numbers


def _instances(numbers: Tensor, slots: _Slots) -> Instances:
    """The things among the segments of ``[H, W]`` that are no crowds and have a pixel."""
    visible = ((number, slots[number]) for number in numbers.unique().tolist())
    things = [
        (number, segment["category_id"])
        for number, segment in visible
        if segment is not None and segment["isthing"] and not segment.get("iscrowd", 0)
    ]
    chosen = torch.tensor([number for number, _ in things], dtype=torch.int64)
    masks = BitMasks(numbers[None] == chosen[:, None, None])
    instances = Instances(tuple(numbers.shape))
    instances.gt_boxes = masks.get_bounding_boxes()
    instances.gt_classes = torch.tensor([category for _, category in things], dtype=torch.int64)
    instances.gt_masks = masks
    return instances
