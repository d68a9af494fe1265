"""From a record with a label map to the input of a semantic segmentation model; label maps."""

import copy
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from detectron2.data import transforms as T
from numpy.typing import DTypeLike

from densedet.data.images import check_image_size, label_map_size, read_label_map, size_remedy
from densedet.data.orientation import read_pixels
from densedet.errors import ConfigError, DatasetError


class LabelReader:
    """Reads label maps and refuses labels that are no class.

    Also for ``SemSegEvaluator``, as its ``sem_seg_loading_fn``: without it labels that were not
    prepared give a wrong figure, since the evaluator counts the label ``num_classes`` as ignored.

    Args:
        num_classes: labels are below it, except ``ignore_value``.
        ignore_value: label of the pixels that count nowhere; above 255 (ADE20K-Full: 65535) the
            label maps have 16 bits, else 8.

    Raises:
        ConfigError: ``ignore_value`` is the index of a class, or no 16-bit label.
    """

    def __init__(self, num_classes: int, ignore_value: int = 255) -> None:
        if not 0 < num_classes <= ignore_value <= 65535:
            raise ConfigError(
                f"ignore_value={ignore_value} is a label of the {num_classes} classes, or above "
                "65535; give one between"
            )
        self.num_classes, self.ignore_value = num_classes, ignore_value
        self._bits: Literal[8, 16] = 8 if ignore_value <= 255 else 16

    def __call__(self, path: str | os.PathLike[str], dtype: DTypeLike | None = None) -> np.ndarray:
        """Read a label map.

        Args:
            path: of the PNG or TIFF.
            dtype: of the result; by default the file's own, uint8 or uint16.

        Returns:
            [H, W], writable.

        Raises:
            ImageError: the file is missing, truncated or not an image.
            DatasetError: it has another number of bits, or a label that is no class.
        """
        labels = read_label_map(path, self._bits)
        wrong = labels[(labels >= self.num_classes) & (labels != self.ignore_value)]
        if wrong.size:
            raise DatasetError(
                f"label map {os.fspath(path)} has the label {wrong.max()}, which is none of the "
                f"{self.num_classes} classes (0 to {self.num_classes - 1}) and not the ignored "
                f"{self.ignore_value}; were the labels prepared?"
            )
        return labels if dtype is None else labels.astype(dtype, copy=False)


class SemanticMapper:
    """Reads an image and, in training, its label map, and applies the same augmentations to both.

    Args:
        is_train: whether to read label maps.
        augmentations: applied in order, see :mod:`densedet.data.transforms`; Detectron2's own that
            resize take 8-bit labels only.
        num_classes, ignore_value: see :class:`LabelReader`.
        apply_exif: see :class:`densedet.data.DetectionMapper`; label maps are never turned.

    Raises:
        ConfigError: as :class:`LabelReader`.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        num_classes: int,
        ignore_value: int = 255,
        *,
        apply_exif: bool = True,
    ) -> None:
        self.is_train = is_train
        self.augmentations = T.AugmentationList(list(augmentations))
        self.read_labels = LabelReader(num_classes, ignore_value)
        self.apply_exif = apply_exif

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: with "file_name" and "sem_seg_file_name"; not modified. In testing the
                label map may be absent; only the size of one that is there is looked at.

        Returns:
            The record with "image", (3, H, W) uint8 RGB, and in training "sem_seg", (H, W) int64.
            "height" and "width" are those of the file.

        Raises:
            ImageError: an image or a label map is missing, truncated or not an image.
            DatasetError: a label map has another number of bits or another size than its image, or
                has a label that is no class.
        """
        record = copy.deepcopy(dataset_dict)
        image = read_pixels(record["file_name"], self.apply_exif)
        height, width = image.shape[:2]
        check_image_size(record, width, height)
        record["width"], record["height"] = width, height
        if "sem_seg_file_name" in record:
            _check_label_size(record, (height, width))
        labels = self.read_labels(record["sem_seg_file_name"]) if self.is_train else None
        aug_input = T.AugInput(image, sem_seg=labels)
        self.augmentations(aug_input)
        pixels = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(pixels)
        if self.is_train:
            record["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))
        return record


def _check_label_size(record: dict[str, Any], size: tuple[int, int]) -> None:
    """Compare the size of a label map with (H, W) of its image: Detectron2's evaluator does not."""
    name = record["sem_seg_file_name"]
    height, width = label_map_size(name)
    if (height, width) != size:
        raise DatasetError(
            f"label map {name} is {width}x{height} pixels (width x height), but its image "
            f"{record['file_name']} is {size[1]}x{size[0]}; "
            f"{size_remedy(record['file_name'], (width, height), size[::-1])}"
        )
