"""Embedding given regions of images with a CLIP image tower, in the ways that are compared."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from densedet.clip import ClipVisual
from densedet.clip.resnet import ResNetVisual
from densedet.clip.token_visual import TokenVisual
from densedet.clip.visual import DensePath
from densedet.clip.vit import VitVisual
from densedet.errors import ConfigError
from densedet.regions.crops import (
    Backend,
    Padding,
    crop_and_resize,
    normalise,
    scale_boxes,
    whole_image,
)
from densedet.regions.pooling import box_masks, pool_boxes, pool_masks

_DENSE_PATHS: dict[str, DensePath] = {
    "boxes": "value",
    "masks": "value",
    "boxes_tokens": "tokens",
    "boxes_values": "values",
}
MODES = (*_DENSE_PATHS, "boxes_attention", "crops")
_CROPS_AT_ONCE = 256


def check_modes(visual: ClipVisual, modes: Sequence[str]) -> None:
    """Refuse modes of :func:`embed_regions` that do not exist, or not for this tower.

    Raises:
        ConfigError: names the mode.
    """
    for mode in modes:
        if mode not in MODES:
            raise ConfigError(f"no region mode {mode!r}; choose from {', '.join(MODES)}")
        if _DENSE_PATHS.get(mode, "value") != "value":
            supported = isinstance(visual, TokenVisual)
        else:
            supported = mode != "boxes_attention" or isinstance(visual, (VitVisual, ResNetVisual))
        if not supported:
            raise ConfigError(
                f"the region mode {mode!r} is not defined for a {type(visual).__name__}; leave it "
                "out of the modes"
            )


def embed_crops(visual: ClipVisual, pixels: Tensor) -> Tensor:
    """Normalise crops and embed them, so many at once that the memory is bounded.

    Args:
        visual: the image tower. Neither its mode nor gradients are touched here.
        pixels: uint8 ``[K, 3, c, c]`` on the device of the tower; K may be 0.

    Returns:
        ``[K, D]`` image embeddings, not normalised.
    """
    if not len(pixels):
        return torch.zeros(0, visual.embed_dim, device=pixels.device)
    parts = [
        visual.embed_images(normalise(part, visual.pixel_mean, visual.pixel_std))
        for part in pixels.split(_CROPS_AT_ONCE)
    ]
    return torch.cat(parts)


def square_images(
    visual: ClipVisual, images: Sequence[Tensor], size: int, backend: Backend = "auto"
) -> Tensor:
    """Pictures as the student of CLIPSelf sees them (arXiv 2310.01403): ``[B, 3, size, size]``.

    The longest side becomes ``size``; black is added at the right and the bottom, then the
    statistics of the tower's weights normalise.

    Args:
        visual: the tower they are for.
        images: uint8 ``[3, H, W]`` each, on one device.
        size: side of the squares in pixels.
        backend: see :func:`densedet.regions.crops.crop_and_resize`.
    """
    whole = [whole_image(image) for image in images]
    pixels = crop_and_resize(images, whole, size, "corner", backend)
    return normalise(pixels, visual.pixel_mean, visual.pixel_std)


def embed_regions(
    visual: ClipVisual,
    samples: Sequence[dict[str, Any]],
    *,
    image_size: int,
    crop_size: int,
    modes: Sequence[str],
    crop_padding: Padding = "centre",
) -> list[dict[str, Tensor]]:
    """Embed the regions of a batch of images; only what the modes need is computed.

    The dense map is that of :func:`square_images`. The modes:

    - "boxes": RoIAlign 1x1 of the dense map of the value path.
    - "masks": mean of the same map over the cells of the mask.
    - "crops": image embedding of each crop rectangle, resized to ``crop_size``.
    - "boxes_tokens": RoIAlign of the ordinary tokens of the last block.
    - "boxes_values": RoIAlign of the projected values of the last block, without its residual and
      MLP (MaskCLIP, arXiv 2112.01071).
    - "boxes_attention": a CLS token that sees only the cells of the box (ViT), or the attention
      pool on the RoI (ResNet).

    Args:
        visual: the image tower. Neither its mode nor gradients are touched here.
        samples: what :class:`densedet.data.RegionTruthMapper` makes: "image", "regions", and for
            the modes of these names "cells" and "crop_rectangles".
        image_size: side of the square, in pixels; a multiple of the stride.
        crop_size: side of the square for a crop.
        modes: of :data:`MODES`.
        crop_padding: see :func:`densedet.regions.crops.crop_and_resize`.

    Returns:
        For each image, mode -> ``[K, D]``, not normalised.

    Raises:
        ConfigError: a mode is unknown, or this tower does not have it.
    """
    check_modes(visual, modes)
    if not samples:
        return []
    device = next(visual.parameters()).device
    images = [sample["image"].to(device) for sample in samples]
    found: dict[str, list[Tensor]] = {}
    if "crops" in modes:
        rectangles = [sample["crop_rectangles"] for sample in samples]
        pixels = crop_and_resize(images, rectangles, crop_size, crop_padding, "auto")
        counts = [len(image_rectangles) for image_rectangles in rectangles]
        found["crops"] = list(embed_crops(visual, pixels).split(counts))
    if set(modes) - {"crops"}:
        squares = square_images(visual, images, image_size)
        boxes = [_boxes_in_square(sample, image_size, device) for sample in samples]
        if "boxes_attention" in modes:
            found["boxes_attention"] = _attend(visual, squares, boxes)
        cells = [sample["cells"].to(device) for sample in samples] if "masks" in modes else []
        found |= _pool_dense_maps(visual, squares, boxes, cells, modes)
    return [{mode: found[mode][i] for mode in modes} for i in range(len(samples))]


def _boxes_in_square(sample: dict[str, Any], size: int, device: torch.device) -> Tensor:
    height, width = sample["image"].shape[1:]
    return scale_boxes(sample["regions"], (height, width), size).to(device)


def _pool_dense_maps(
    visual: ClipVisual,
    squares: Tensor,
    boxes: list[Tensor],
    cells: list[Tensor],
    modes: Sequence[str],
) -> dict[str, list[Tensor]]:
    counts = [len(image_boxes) for image_boxes in boxes]
    found = {}
    for path in dict.fromkeys(_DENSE_PATHS.values()):
        wanted = [mode for mode in modes if _DENSE_PATHS.get(mode) == path]
        if not wanted:
            continue
        dense = visual.dense_map(squares, path)
        for mode in wanted:
            if mode == "masks":
                pooled = pool_masks(dense, cells)
            else:
                pooled = pool_boxes(dense, boxes, visual.stride)
            found[mode] = list(pooled.split(counts))
    return found


def _attend(visual: ClipVisual, squares: Tensor, boxes: list[Tensor]) -> list[Tensor]:
    """Image by image: the attention mask of a batch would be padded to its largest image."""
    if isinstance(visual, ResNetVisual):
        counts = [len(image_boxes) for image_boxes in boxes]
        return list(visual.attend_boxes(squares, boxes).split(counts))
    assert isinstance(visual, VitVisual)  # check_modes
    height, width = squares.shape[2] // visual.stride, squares.shape[3] // visual.stride
    masks = [box_masks(image_boxes, (height, width), visual.stride) for image_boxes in boxes]
    pairs = zip(squares.split(1), masks, strict=True)
    return [visual.attend_masks(square, [mask]) for square, mask in pairs]
