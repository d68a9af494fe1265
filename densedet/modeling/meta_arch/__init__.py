"""Detectron2 meta-architectures: open-vocabulary detectors, and trainings of the backbone."""

from densedet.modeling.meta_arch.clipself import CLIPSelf
from densedet.modeling.meta_arch.rcnn import OpenVocabularyRCNN
from densedet.modeling.meta_arch.region_clip import RegionCLIP

__all__ = ["CLIPSelf", "OpenVocabularyRCNN", "RegionCLIP"]
