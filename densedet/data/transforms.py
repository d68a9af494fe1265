"""Detectron2 augmentations: the resizing of detectors, resizing and colours of segmentation."""

from typing import Any

import cv2
import numpy as np
from detectron2.data import transforms as T
from PIL import Image

from densedet.errors import ConfigError
from densedet.modeling.resizing import fit_size


def large_scale_jitter(
    size: int, min_scale: float = 0.1, max_scale: float = 2.0, flip: float = 0.5
) -> list[T.Augmentation]:
    """Large-scale jitter for training (Ghiasi et al., arXiv 2012.07177; F-ViT, arXiv 2310.01403).

    The image is resized, keeping its aspect ratio, to fit a square of ``size * U(min_scale,
    max_scale)``, cropped at random to at most ``size`` x ``size``, and flipped horizontally. Row
    and column of the crop are drawn apart: Detectron2's ``FixedSizeCrop`` draws one number for the
    two, and what lies off a diagonal of the image is never seen. It also pads with grey before
    normalisation; here ``ImageList`` pads with zeros after it, as F-ViT does.

    Args:
        size: side of the training square, pixels.
        min_scale: smallest factor on ``size``.
        max_scale: largest factor on ``size``.
        flip: probability of the flip.
    """
    _check_size(size)
    return [
        _ResizeScale(min_scale, max_scale, size, size),
        T.RandomCrop("absolute", (size, size)),
        T.RandomFlip(prob=flip, horizontal=True),
    ]


def resize_longest_side(size: int) -> list[T.Augmentation]:
    """Resize so that the longest side is ``size`` pixels, keeping the aspect ratio (for testing).

    Small images are enlarged. The other side is rounded to the nearest pixel.
    """
    _check_size(size)
    return [ResizeShortestEdge(size, max_size=size, sample_style="choice")]


class _OnePixelAtLeast(T.Augmentation):
    """Lets a very narrow image keep a pixel, where Detectron2's resizing would round to none."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        transform: Any = super().get_transform(image)
        transform.new_h, transform.new_w = max(1, transform.new_h), max(1, transform.new_w)
        return transform


class _ResizeScale(_OnePixelAtLeast, T.ResizeScale):
    pass


class ResizeShortestEdge(_OnePixelAtLeast, T.ResizeShortestEdge):
    """Detectron2's, which also takes an image so narrow that a side would be rounded to 0."""


class ResizeToFit(T.Augmentation):
    """Resize to the largest size that fits in ``(long, short)`` times a random factor.

    The aspect ratio is kept; small images are enlarged. This is the resizing of the usual training
    on ADE20K (DenseCLIP, arXiv 2112.01518): with one factor ``r``, the long side is at most
    ``floor(long r)``, the short side at most ``floor(short r)``, and both are rounded to the
    nearest pixel. Images are interpolated bilinearly, label maps take the nearest label.

    Args:
        long: limit of the long side, pixels.
        short: limit of the short side, pixels.
        factors: ends of the interval from which the factor is drawn.

    Raises:
        ConfigError: a size or factor is not positive, or an interval's ends are exchanged.
    """

    def __init__(self, long: int, short: int, factors: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        _check_size(short)
        low, high = factors
        if long < short or not 0 < low <= high:
            raise ConfigError(
                f"ResizeToFit(long={long}, short={short}, factors=({low}, {high})): give "
                "long >= short and 0 < factors[0] <= factors[1]"
            )
        self.long, self.short, self.factors = long, short, (float(low), float(high))

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw a factor for ``image`` [H, W, ...]."""
        factor = np.random.uniform(*self.factors)
        height, width = image.shape[:2]
        new = fit_size(height, width, self.long, self.short, factor)
        return _Resize(height, width, *new, Image.Resampling.BILINEAR)


class _Resize(T.ResizeTransform):
    """Detectron2's, whose label maps have 8 bits only; Pillow takes 16 as well."""

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Take the nearest label: [H, W] uint8 or uint16 -> [H', W']."""
        image = Image.fromarray(segmentation)
        return np.asarray(image.resize((self.new_w, self.new_h), Image.Resampling.NEAREST))


class PhotometricDistortion(T.Augmentation):
    """Change brightness, contrast, saturation and hue of a uint8 RGB image, each with chance 1/2.

    Brightness is shifted by up to 32, contrast and saturation are multiplied by 0.5 to 1.5, hue is
    turned by up to 36 degrees. Contrast comes before or after saturation and hue, at random.
    Values are cut to 0..255 after every step. From SSD (Liu et al., arXiv 1512.02325), with the
    usual settings of semantic segmentation.
    """

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Draw what is done to an image."""
        brightness = np.random.uniform(-32, 32) if _coin() else 0.0
        contrast_first = _coin()
        contrast, saturation = (np.random.uniform(0.5, 1.5) if _coin() else 1.0 for _ in range(2))
        hue = int(np.random.randint(-18, 18)) if _coin() else 0

        def change(pixels: np.ndarray) -> np.ndarray:
            pixels = _linear(pixels, 1.0, brightness)
            if contrast_first:
                pixels = _linear(pixels, contrast, 0.0)
            pixels = _colourful(pixels, saturation, hue)
            return pixels if contrast_first else _linear(pixels, contrast, 0.0)

        return T.ColorTransform(change)


def _coin() -> bool:
    return bool(np.random.randint(2))


def _linear(pixels: np.ndarray, factor: float, offset: float) -> np.ndarray:
    if (factor, offset) == (1.0, 0.0):
        return pixels
    changed = pixels.astype(np.float32) * factor + offset
    return np.clip(changed, 0, 255).astype(np.uint8)


def _colourful(pixels: np.ndarray, saturation: float, hue: int) -> np.ndarray:
    """``hue`` in steps of two degrees, as OpenCV has it."""
    if (saturation, hue) == (1.0, 0):
        return pixels
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(np.int32) + hue) % 180
    hsv[..., 1] = _linear(hsv[..., 1], saturation, 0.0)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def _check_size(size: int) -> None:
    if size < 1:
        raise ConfigError(f"image size {size}: give a positive number of pixels")
