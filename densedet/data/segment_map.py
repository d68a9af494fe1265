"""Maps of segment ids as COCO's panoptic PNGs hold them: id = R + 256 G + 256^2 B.

Format: https://cocodataset.org/#format-data.
"""

import os

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densedet.data.images import LABEL_FORMATS, check_bits, open_image
from densedet.errors import DatasetError
from densedet.files import atomic_path, writing

MAX_ID = 256**3 - 1


def read_segment_map(path: str | os.PathLike[str]) -> NDArray[np.uint32]:
    """Read the segment id of each pixel of a panoptic PNG: [H, W] uint32.

    Raises:
        ImageError: the file is missing, is not a PNG or a TIFF, or is truncated or corrupt, also
            where only a checksum shows it.
    """
    name = os.fspath(path)
    with open_image(name, LABEL_FORMATS) as image:
        check_bits(image.mode, name)
        colours = np.asarray(image.convert("RGB"))
    red, green, blue = np.moveaxis(colours, 2, 0).astype(np.uint32)
    ids: NDArray[np.uint32] = red | green << 8 | blue << 16
    return ids


def write_segment_map(path: str | os.PathLike[str], ids: NDArray[np.integer]) -> None:
    """Write segment ids [H, W] of any integer type as a panoptic PNG, whole or not at all.

    Raises:
        DatasetError: an id that three 8-bit channels do not hold.
        OutputError: the file cannot be written.
    """
    if ids.min() < 0 or ids.max() > MAX_ID:
        raise DatasetError(
            f"{path}: segment ids {ids.min()} to {ids.max()} do not fit in the colours of a PNG; "
            f"use ids from 0 to {MAX_ID}"
        )
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], axis=-1)
    with atomic_path(path) as temporary, writing(path):
        Image.fromarray(colours.astype(np.uint8)).save(temporary, format="PNG")
