"""Pooling dense embeddings over regions of the image; independent of Detectron2."""

from densedet.regions.pooling import pool_boxes, pool_masks

__all__ = ["pool_boxes", "pool_masks"]
