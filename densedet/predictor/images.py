"""Images as users have them, and what is kept of those that were looked at."""

import hashlib
import logging
import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.utils.logger import log_first_n
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from densedet.data.images import check_bits, read_image, reading
from densedet.errors import ImageError

ImageLike = NDArray[np.uint8] | Image.Image | str | os.PathLike[str]
"""An (H, W, 3) uint8 RGB array, a Pillow image, or a file."""

MAX_PIXELS = 2_097_152
"""The most pixels, 2,048 x 1,024, that a model sees of an image: time and memory grow with them."""

MAX_TOKENS = 6_400
"""The most cells of an image tower, whose attention may grow with their square: 640 x 640 pixels
with patches of 8, 1,280 x 1,280 with patches of 16. No config here is trained or tested on more."""


def as_pixels(image: ImageLike) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) uint8 RGB of an image; of files and Pillow images turned as EXIF says.

    Raises:
        ImageError: a file or a Pillow image that cannot be read or has more than 8 bits a channel,
            or an array of another shape or type.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", "") or "from Pillow"
        check_bits(image.mode, name)
        with reading(name):  # it reads the file now
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"an image is a (H, W, 3) uint8 RGB array, a Pillow image or a file, not a "
            f"{type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(
            f"an array of shape {image.shape} and type {image.dtype} is no image: give (H, W, 3) "
            "uint8 in RGB"
        )
    return image


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """An image as a model takes it, and what was computed of it.

    Attributes:
        size: (H, W) of the image, pixels.
        tensor: [3, h, w] uint8 RGB after the augmentations of the evaluation, within the bound.
        asked: (H', W') that the model is asked to answer in: ``size``, or smaller at the bound.
    """

    size: tuple[int, int]
    tensor: Tensor
    asked: tuple[int, int]

    @property
    def record(self) -> dict[str, Any]:
        """The input of a Detectron2 model."""
        return {"image": self.tensor, "height": self.asked[0], "width": self.asked[1]}


def prepare(
    pixels: NDArray[np.uint8], augmentations: T.AugmentationList, max_pixels: int = MAX_PIXELS
) -> PreparedImage:
    """Augment an image (H, W, 3) as the evaluation does, and keep it within ``max_pixels``."""
    size = pixels.shape[0], pixels.shape[1]
    augmented = T.AugInput(pixels)
    augmentations(augmented)
    image = augmented.image
    height, width = bounded(image.shape[0], image.shape[1], max_pixels)
    if (height, width) != image.shape[:2]:
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
        text = (
            f"an image of {size[1]} x {size[0]} pixels is looked at with {width} x {height} "
            f"(max_pixels={max_pixels}); results are in its own pixels"
        )
        log_first_n(logging.WARNING, text, key="message", name=__name__)
    tensor = torch.as_tensor(image.transpose(2, 0, 1).copy())
    return PreparedImage(size, tensor, bounded(*size, max_pixels))


def bounded(height: int, width: int, max_pixels: int) -> tuple[int, int]:
    """The largest height and width in this ratio with at most so many pixels, each at least 1."""
    if height * width <= max_pixels:
        return height, width
    factor = (max_pixels / (height * width)) ** 0.5
    short = max(1, int(min(height, width) * factor))
    long = max(1, min(int(max(height, width) * factor), max_pixels // short))
    return (short, long) if height < width else (long, short)


class ImageMemory:
    """The last images, recognised by their content. Not safe for threads by itself.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._images: OrderedDict[bytes, PreparedImage] = OrderedDict()

    def get(
        self,
        pixels: NDArray[np.uint8],
        augmentations: T.AugmentationList,
        max_pixels: int = MAX_PIXELS,
    ) -> PreparedImage:
        """The image (H, W, 3), with what was computed of it before."""
        digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        key = digest.digest()
        if key not in self._images:
            self._images[key] = prepare(pixels, augmentations, max_pixels)
        self._images.move_to_end(key)
        while len(self._images) > self._size:
            self._images.popitem(last=False)
        return self._images[key]
