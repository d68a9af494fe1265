"""From a dataset record to the input of a Detectron2 model."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from densedet.data.images import check_image_size
from densedet.data.orientation import read_pixels
from densedet.errors import ConfigError, DatasetError


class DetectionMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` for boxes and masks, with checked images in RGB.

    It differs in these points: an image that cannot be read raises ``ImageError`` and one whose
    size is not the record's raises ``DatasetError``; what an augmentation cuts away, or leaves
    thinner than ``min_box_side``, is dropped before its mask is transformed; with masks, objects
    whose polygons are degenerate (an empty list) are left out. It never returns None:
    an image that is left without objects has empty ``instances``, and the loader may draw another.

    Args:
        is_train: whether to make ``instances``; without, annotations are left out.
        augmentations: applied in order, see :mod:`densedet.data.transforms`.
        use_instance_mask: whether ``instances`` have ``gt_masks``.
        mask_format: "bitmask" (also for RLE) or "polygon".
        recompute_boxes: replace the boxes by the tight boxes of the masks after the augmentations.
        min_box_side: boxes of which a side is not longer than this, in pixels after the
            augmentations, are dropped (0.01 in F-ViT, arXiv 2310.01403).
        apply_exif: turn images as their EXIF tag says, as Detectron2 does; False where sizes and
            boxes of the annotations are those of the pixels as they are stored.

    Raises:
        ConfigError: an unknown mask format, or ``recompute_boxes`` without masks.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        use_instance_mask: bool = False,
        mask_format: str = "bitmask",
        recompute_boxes: bool = False,
        min_box_side: float = 0.01,
        apply_exif: bool = True,
    ) -> None:
        if mask_format not in ("bitmask", "polygon"):
            raise ConfigError(f"mask_format {mask_format!r}: choose 'bitmask' or 'polygon'")
        if recompute_boxes and not use_instance_mask:
            raise ConfigError("recompute_boxes needs masks: set use_instance_mask=True as well")
        super().__init__(
            is_train,
            augmentations=list(augmentations),
            image_format="RGB",
            use_instance_mask=use_instance_mask,
            instance_mask_format=mask_format,
            recompute_boxes=recompute_boxes,
        )
        self.min_box_side = min_box_side
        self.apply_exif = apply_exif

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one record.

        Args:
            dataset_dict: in Detectron2's standard format; not modified.

        Returns:
            The record with "image", (3, H, W) uint8 RGB, and in training "instances" (``gt_boxes``,
            ``gt_classes``, ``gt_masks``) instead of "annotations". "height" and "width" stay those
            of the file.

        Raises:
            ImageError: the image is missing, truncated or not an image.
            DatasetError: its size is not the record's, or a mask is missing or of another format.
        """
        record = copy.deepcopy(dataset_dict)
        image = read_pixels(record["file_name"], self.apply_exif)
        height, width = image.shape[:2]
        check_image_size(record, width, height)
        record["width"], record["height"] = width, height
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, image.shape[:2])
        return record

    def _transform_annotations(
        self,
        dataset_dict: dict[str, Any],
        transforms: T.TransformList,
        image_shape: tuple[int, int],
    ) -> None:
        annotations = [a for a in dataset_dict.pop("annotations") if not a.get("iscrowd", 0)]
        if self.use_instance_mask:
            annotations = [a for a in annotations if a.get("segmentation") != []]
        annotations = self._visible(annotations, transforms, image_shape)
        for annotation in annotations:
            self._prepare_mask(annotation, dataset_dict["file_name"])
        transformed = [
            detection_utils.transform_instance_annotations(a, transforms, image_shape)
            for a in annotations
        ]
        instances = detection_utils.annotations_to_instances(
            transformed, image_shape, mask_format=self.instance_mask_format
        )
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = detection_utils.filter_empty_instances(
            instances, box_threshold=self.min_box_side
        )

    def _visible(
        self,
        annotations: list[dict[str, Any]],
        transforms: T.TransformList,
        image_shape: tuple[int, int],
    ) -> list[dict[str, Any]]:
        """The annotations whose box is still there after the transforms.

        Looked at before the masks, which are dear: a twofold enlargement cuts most objects away.
        """
        if not annotations:
            return []
        boxes = transforms.apply_box(
            np.array(
                [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations],
                dtype=np.float64,
            )
        )
        height, width = image_shape
        boxes = boxes.clip(min=0, max=np.array([width, height, width, height]))
        kept = ((boxes[:, 2:] - boxes[:, :2]) > self.min_box_side).all(axis=1)
        return [a for a, keep in zip(annotations, kept, strict=True) if keep]

    def _prepare_mask(self, annotation: dict[str, Any], file_name: str) -> None:
        if not self.use_instance_mask:
            annotation.pop("segmentation", None)
            return
        if "segmentation" not in annotation:
            raise DatasetError(
                f"an annotation of image {file_name} (box {annotation['bbox']}) has no "
                "segmentation; add it to the annotation file or set use_instance_mask=False"
            )
        if self.instance_mask_format == "polygon" and not isinstance(
            annotation["segmentation"], list
        ):
            raise DatasetError(
                f"an annotation of image {file_name} (box {annotation['bbox']}) has a run-length "
                "mask; set mask_format='bitmask'"
            )
