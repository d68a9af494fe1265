"""Detectron2 meta-architectures: detectors, segmentors, and trainings of the backbone."""

from densedet.modeling.meta_arch.clipself import CLIPSelf
from densedet.modeling.meta_arch.guided import GuidedRCNN, GuidedRetinaNet
from densedet.modeling.meta_arch.panoptic import OpenVocabularyPanopticFPN
from densedet.modeling.meta_arch.rcnn import ClosedSetRCNN, OpenVocabularyRCNN
from densedet.modeling.meta_arch.region_clip import RegionCLIP
from densedet.modeling.meta_arch.segmentor import Segmentor
from densedet.modeling.meta_arch.zero_shot_segmentor import ZeroShotSegmentor

__all__ = [
    "CLIPSelf",
    "ClosedSetRCNN",
    "GuidedRCNN",
    "GuidedRetinaNet",
    "OpenVocabularyPanopticFPN",
    "OpenVocabularyRCNN",
    "RegionCLIP",
    "Segmentor",
    "ZeroShotSegmentor",
]
