"""Pictures as users have them, and what is kept of those that were looked at."""

import hashlib
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from densedet.data.images import check_bits, read_image, reading
from densedet.errors import ImageError

ImageLike = NDArray[np.uint8] | Image.Image | str | os.PathLike[str]
"""An (H, W, 3) uint8 RGB array, a Pillow image, or a file."""


def as_pixels(image: ImageLike) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) uint8 RGB of a picture; of files and Pillow images turned as EXIF says.

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
            f"a picture is a (H, W, 3) uint8 RGB array, a Pillow image or a file, not a "
            f"{type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(
            f"an array of shape {image.shape} and type {image.dtype} is no picture: give (H, W, 3) "
            "uint8 in RGB"
        )
    return image


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A picture as a model takes it, and what was computed of it.

    Attributes:
        size: (H, W) of the picture, pixels.
        tensor: [3, h, w] uint8 RGB after the augmentations of the evaluation.
        kept: the calls of the image encoder for this picture: input, other arguments and result.
    """

    size: tuple[int, int]
    tensor: Tensor
    kept: list[tuple[Tensor, Any, Any]] = field(default_factory=list, repr=False)

    @property
    def record(self) -> dict[str, Any]:
        """The input of a Detectron2 model."""
        return {"image": self.tensor, "height": self.size[0], "width": self.size[1]}


def prepare(pixels: NDArray[np.uint8], augmentations: T.AugmentationList) -> PreparedImage:
    """Augment a picture (H, W, 3) as the evaluation does."""
    augmented = T.AugInput(pixels)
    augmentations(augmented)
    tensor = torch.as_tensor(augmented.image.transpose(2, 0, 1).copy())
    return PreparedImage((pixels.shape[0], pixels.shape[1]), tensor)


class ImageMemory:
    """The last pictures, recognised by their content. Not safe for threads by itself.

    Args:
        size: how many are kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._images: OrderedDict[bytes, PreparedImage] = OrderedDict()

    def get(self, pixels: NDArray[np.uint8], augmentations: T.AugmentationList) -> PreparedImage:
        """The picture (H, W, 3), with what was computed of it before."""
        digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(pixels).data)
        key = digest.digest()
        if key not in self._images:
            self._images[key] = prepare(pixels, augmentations)
        self._images.move_to_end(key)
        while len(self._images) > self._size:
            self._images.popitem(last=False)
        return self._images[key]
