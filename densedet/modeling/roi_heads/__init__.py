"""Open-vocabulary ROI heads."""

from densedet.modeling.roi_heads.box_predictor import OpenVocabularyBoxPredictor
from densedet.modeling.roi_heads.classifier import CosineClassifier, ScoreEnsemble
from densedet.modeling.roi_heads.pooler import StridePooler
from densedet.modeling.roi_heads.roi_heads import OpenVocabularyROIHeads

__all__ = [
    "CosineClassifier",
    "OpenVocabularyBoxPredictor",
    "OpenVocabularyROIHeads",
    "ScoreEnsemble",
    "StridePooler",
]
