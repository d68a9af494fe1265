"""CLIP towers as Detectron2 backbones, and pyramids over them."""

from densedet.modeling.backbone.clip_backbone import DENSE_FEATURE, ClipBackbone
from densedet.modeling.backbone.pyramid import PyramidFPN, TapPyramid

__all__ = ["DENSE_FEATURE", "ClipBackbone", "PyramidFPN", "TapPyramid"]
