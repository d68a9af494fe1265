"""From a dataset record to the regions that a student and its teacher look at."""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from densedet.data.images import check_image_size
from densedet.data.orientation import read_pixels
from densedet.errors import ConfigError, ImageError
from densedet.regions.crops import crop_and_resize, whole_image
from densedet.regions.sampling import Regions

logger = logging.getLogger(__name__)

MIN_SIDE = 10  # pixels; CLIPSelf uses no smaller images


class RegionMapper:
    """The mapper of CLIPSelf (arXiv 2310.01403): a decoded image and regions in it.

    Only the decoded image is handed on, in its own size; the model makes the student's image and
    the teacher's crops of it. With ``pil_sizes`` they are made here by Pillow, as the published
    loader makes them.

    Args:
        regions: from a record and (height, width) to :class:`densedet.regions.Regions`, e.g.
            :class:`densedet.regions.GridRegions`.
        pil_sizes: sides in pixels of the student's square and of the teacher's; None leaves the
            resizing to the model.
        min_side: an image with a shorter side than this is not used, pixels.
        skip_unreadable: do not use an image that cannot be read either, instead of raising.
        apply_exif: see :class:`densedet.data.DetectionMapper`.

    Raises:
        ConfigError: ``pil_sizes`` are not two positive numbers.
    """

    def __init__(
        self,
        regions: Callable[[dict[str, Any], tuple[int, int]], Regions],
        *,
        pil_sizes: tuple[int, int] | None = None,
        min_side: int = MIN_SIDE,
        skip_unreadable: bool = False,
        apply_exif: bool = True,
    ) -> None:
        if pil_sizes is not None and (len(pil_sizes) != 2 or min(pil_sizes) < 1):
            raise ConfigError(f"pil_sizes={pil_sizes}: give the sides of student image and crops")
        self.regions = regions
        self.pil_sizes = pil_sizes
        self.min_side = min_side
        self.skip_unreadable = skip_unreadable
        self.apply_exif = apply_exif

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """Map one record.

        Args:
            dataset_dict: in Detectron2's standard format; not modified. Its "width" and "height"
                may be missing.

        Returns:
            "image", uint8 ``[3, H, W]`` RGB in the size of the file; "regions", float32 ``[K, 4]``,
            (x0, y0, x1, y1) in its pixels; "crop_rectangles", int64 ``[K, 4]``; "region_labels",
            int64 ``[K]``, if the regions have labels; "file_name", "image_id", "height", "width".
            With ``pil_sizes`` there are instead of the image "student", uint8 ``[3, S, S]``, and
            "crops", uint8 ``[K, 3, c, c]``. None if the image is not to be used: a training loader
            with ``redraw_empty=True`` then draws another.

        Raises:
            ImageError: the image cannot be read.
            DatasetError: its size is not the record's, or what the regions raise.
        """
        try:
            pixels = read_pixels(dataset_dict["file_name"], self.apply_exif)
        except ImageError as error:
            if not self.skip_unreadable:
                raise
            logger.warning("another image is drawn: %s", error)
            return None
        height, width = pixels.shape[:2]
        check_image_size(dataset_dict, width, height)
        if min(height, width) < self.min_side:
            return None
        regions = self.regions(dataset_dict, (height, width))
        image = torch.from_numpy(pixels).permute(2, 0, 1)  # a view: the device may copy it
        sample = {
            **self._pixels(image, regions.rectangles),
            "regions": regions.boxes,
            "crop_rectangles": regions.rectangles,
            "file_name": os.fspath(dataset_dict["file_name"]),
            "image_id": dataset_dict["image_id"],
            "height": height,
            "width": width,
        }
        if regions.labels is not None:
            sample["region_labels"] = regions.labels
        return sample

    def _pixels(self, image: Tensor, rectangles: Tensor) -> dict[str, Tensor]:
        if self.pil_sizes is None:
            return {"image": image}
        student, crop = self.pil_sizes
        return {
            "student": crop_and_resize([image], [whole_image(image)], student, "corner", "pil")[0],
            "crops": crop_and_resize([image], [rectangles], crop, "centre", "pil"),
        }
