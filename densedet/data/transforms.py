"""The two resizing schemes of the detectors, as lists of Detectron2 augmentations."""

from detectron2.data import transforms as T

from densedet.errors import ConfigError


def large_scale_jitter(
    size: int, min_scale: float = 0.1, max_scale: float = 2.0, flip: float = 0.5
) -> list[T.Augmentation]:
    """Large-scale jitter for training (Ghiasi et al., arXiv 2012.07177; F-ViT, arXiv 2310.01403).

    The image is resized, keeping its aspect ratio, to fit a square of ``size * U(min_scale,
    max_scale)``, cropped at random to at most ``size`` x ``size``, and flipped horizontally. It is
    not padded here: Detectron2's ``FixedSizeCrop`` pads with grey before normalisation, whereas
    ``ImageList`` pads with zeros after it, as F-ViT does.

    Args:
        size: side of the training square, pixels.
        min_scale: smallest factor on ``size``.
        max_scale: largest factor on ``size``.
        flip: probability of the flip.
    """
    _check_size(size)
    return [
        T.ResizeScale(min_scale, max_scale, size, size),
        T.FixedSizeCrop((size, size), pad=False),
        T.RandomFlip(prob=flip, horizontal=True),
    ]


def resize_longest_side(size: int) -> list[T.Augmentation]:
    """Resize so that the longest side is ``size`` pixels, keeping the aspect ratio (for testing).

    Small images are enlarged. The other side is rounded to the nearest pixel.
    """
    _check_size(size)
    return [T.ResizeShortestEdge(size, max_size=size, sample_style="choice")]


def _check_size(size: int) -> None:
    if size < 1:
        raise ConfigError(f"image size {size}: give a positive number of pixels")
