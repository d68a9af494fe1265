"""Detectron2 meta-architectures: detectors, segmentors, and trainings of the backbone."""

from densedet.modeling.meta_arch.clipself import CLIPSelf
from densedet.modeling.meta_arch.guided import GuidedRCNN, GuidedRetinaNet
from densedet.modeling.meta_arch.rcnn import OpenVocabularyRCNN
from densedet.modeling.meta_arch.region_clip import RegionCLIP
from densedet.modeling.meta_arch.segmentor import Segmentor

__all__ = [
    "CLIPSelf",
    "GuidedRCNN",
    "GuidedRetinaNet",
    "OpenVocabularyRCNN",
    "RegionCLIP",
    "Segmentor",
]
