"""CLIP towers and other models as Detectron2 backbones, and pyramids over them."""

from densedet.modeling.backbone.aligned import (
    DENSE_EMBEDDING,
    POOLED_EMBEDDING,
    AlignedBackbone,
    AlignedResNet,
    AlignedViT,
)
from densedet.modeling.backbone.clip_backbone import DENSE_FEATURE, ClipBackbone
from densedet.modeling.backbone.guided import GuidedBackbone, find_guided
from densedet.modeling.backbone.pyramid import PyramidFPN, TapPyramid
from densedet.modeling.backbone.statistics import image_statistics
from densedet.modeling.backbone.timm_backbone import TimmBackbone

__all__ = [
    "DENSE_EMBEDDING",
    "DENSE_FEATURE",
    "POOLED_EMBEDDING",
    "AlignedBackbone",
    "AlignedResNet",
    "AlignedViT",
    "ClipBackbone",
    "GuidedBackbone",
    "PyramidFPN",
    "TapPyramid",
    "TimmBackbone",
    "find_guided",
    "image_statistics",
]
