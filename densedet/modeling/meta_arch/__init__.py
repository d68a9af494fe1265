"""Detectron2 meta-architectures with a vocabulary."""

from densedet.modeling.meta_arch.rcnn import OpenVocabularyRCNN

__all__ = ["OpenVocabularyRCNN"]
