"""Pooling dense embeddings over regions of the image; independent of Detectron2."""

from densedet.regions.pooling import box_masks, pool_boxes, pool_masks

__all__ = ["box_masks", "pool_boxes", "pool_masks"]
