"""Regions of the image: choosing, cropping and pooling them; independent of Detectron2."""

from densedet.regions.cache import EmbeddingCache
from densedet.regions.crops import (
    crop_and_resize,
    crop_rectangles,
    normalise,
    scale_boxes,
    whole_image,
)
from densedet.regions.masks import mask_cells
from densedet.regions.pooling import box_masks, pool_boxes, pool_masks
from densedet.regions.sampling import (
    BoxRegions,
    GridRegions,
    Regions,
    grid_cells,
    grid_splits,
)

__all__ = [
    "BoxRegions",
    "EmbeddingCache",
    "GridRegions",
    "Regions",
    "box_masks",
    "crop_and_resize",
    "crop_rectangles",
    "grid_cells",
    "grid_splits",
    "mask_cells",
    "normalise",
    "pool_boxes",
    "pool_masks",
    "scale_boxes",
    "whole_image",
]
