"""Semantic segmentation of a picture at several scales, and mirrored."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from detectron2.data import transforms as T
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling.pixel_scores import MeanProbabilities, PixelScores
from densedet.modeling.resizing import fit_size

Segment = Callable[[Tensor], PixelScores]
"""An image ``[3, h, w]`` to logits ``[K, H, W]`` at the size of the result."""


class SemanticTTA:
    """Averages the probabilities of a picture at several scales, each also mirrored.

    The picture is resized, keeping its aspect ratio, to fit ``long * r`` and ``short * r`` for
    each scale r (DenseCLIP, arXiv 2112.01518, multi-scale results). It must come at its original
    size: the test mapper has no augmentation.

    Args:
        scales: the factors r.
        flip: also segment the mirror image of each.
        short: limit of the shorter side at scale 1, pixels.
        long: limit of the longer side at scale 1, pixels.

    Raises:
        ConfigError: no scale, or sizes that are not positive.
    """

    def __init__(
        self,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
        short: int = 512,
        long: int = 2048,
    ) -> None:
        self.scales = tuple(scales)
        self.flip = flip
        self.short = short
        self.long = long
        if not self.scales or min(*self.scales, short, long) <= 0:
            raise ConfigError(
                f"tta: scales {list(self.scales)}, short={short}, long={long}: give at least one "
                "scale, and positive numbers"
            )

    def __call__(self, segment: Segment, record: dict[str, Any]) -> PixelScores:
        """Mean probabilities of one image.

        Args:
            segment: the model; its logits have the size of the picture.
            record: "image" ``[3, H, W]``, uint8 or float RGB in 0..255; "height" and "width" of
                the file, which must be H and W if they are there.

        Returns:
            ``[K, H, W]``, summing to 1 over K.

        Raises:
            ConfigError: the image was resized before.
        """
        image = record["image"]
        height, width = image.shape[-2:]
        original = (record.get("height", height), record.get("width", width))
        if (height, width) != original:
            raise ConfigError(
                f"{record.get('file_name', 'an image')} of {original[0]}x{original[1]} (HxW) comes "
                f"as {height}x{width}, but tta does the resizing: let "
                "dataloader.test.mapper.augmentations be empty"
            )
        return mean_probabilities(segment, (self._resize(image, r) for r in self.scales), self.flip)

    def _resize(self, image: Tensor, scale: float) -> Tensor:
        """Bilinear, with Pillow if the image is uint8 as in Detectron2's own augmentations."""
        height, width = image.shape[-2:]
        new_size = fit_size(height, width, self.long, self.short, scale)
        resize = T.ResizeTransform(height, width, *new_size)
        pixels = resize.apply_image(image.permute(1, 2, 0).cpu().numpy())
        return torch.as_tensor(pixels.transpose(2, 0, 1).copy())


def mean_probabilities(segment: Segment, images: Iterable[Tensor], flip: bool) -> MeanProbabilities:
    """Mean softmax over images ``[3, h, w]`` and, with ``flip``, their mirror images.

    The result of a mirror image is mirrored back.
    """
    views: list[PixelScores] = []
    mirrored: list[bool] = []
    for image in images:
        for mirror in (False, True) if flip else (False,):
            views.append(segment(image.flip(-1) if mirror else image))
            mirrored.append(mirror)
    return MeanProbabilities(views, mirrored)
