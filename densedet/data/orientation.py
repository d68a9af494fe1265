"""EXIF orientation: pixels as they are stored, and what a data set should know of turned images."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from densedet.data.images import (
    check_image_size,
    exif_orientation,
    image_size,
    read_image,
)

logger = logging.getLogger(__name__)

SAMPLE = 20  # images of a data set whose headers are looked at


def read_pixels(path: str | os.PathLike[str], apply_exif: bool = True) -> np.ndarray:
    """As :func:`densedet.data.images.read_image`; without ``apply_exif`` as the file stores it.

    Returns:
        (H, W, 3) uint8 array, writable, RGB.
    """
    pixels = read_image(path)
    if apply_exif:
        return pixels
    orientation = exif_orientation(path)
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # of the upright image, or of its mirror image about the diagonal
    upside_down = orientation in (3, 4, 6, 7)
    mirrored = orientation in (2, 3, 7, 8)
    pixels = pixels[::-1] if upside_down else pixels
    return np.array(pixels[:, ::-1] if mirrored else pixels)


def look_at_images(records: Sequence[Any], mapper: Any) -> None:
    """Look at the headers of a sample of a data set's images, before they are needed.

    An image that an EXIF tag turns without another size is warned of: only its annotations could
    say whether they are for the upright image.

    Args:
        records: of the data set; nothing is done where they are not Detectron2's.
        mapper: what reads them. With its ``apply_exif`` off the sizes are those that are stored;
            with its ``skip_unreadable`` on nothing is looked at.

    Raises:
        ImageError: an image is missing or is no image.
        DatasetError: its size is not that of its record.
    """
    if getattr(mapper, "skip_unreadable", False) or not len(records):
        return
    apply_exif = getattr(mapper, "apply_exif", True)
    turned = []
    for number in np.unique(np.linspace(0, len(records) - 1, SAMPLE).astype(np.int64)):
        record = records[number]
        if not isinstance(record, Mapping) or "file_name" not in record:
            return
        path = record["file_name"]
        height, width = image_size(path)
        orientation = exif_orientation(path)
        if orientation >= 5 and not apply_exif:
            height, width = width, height
        check_image_size(record, width, height)
        if orientation > 1 and (orientation < 5 or width == height):
            turned.append(path)
    if turned:
        logger.warning(
            "%d of %d images that were looked at have an EXIF tag that turns or mirrors them, such "
            "as %s; the tag is %s. If the annotations are not for that, set apply_exif=%s in the "
            "mapper",
            len(turned),
            min(len(records), SAMPLE),
            turned[0],
            "followed" if apply_exif else "ignored",
            not apply_exif,
        )
