"""Language guidance between a backbone and a neck: prompts, context decoders, score maps."""

from densedet.modeling.guidance.base import Guidance, Guided
from densedet.modeling.guidance.decoder import ContextDecoder
from densedet.modeling.guidance.denseclip import DenseCLIP
from densedet.modeling.guidance.losses import BoxScoreLoss, PixelScoreLoss, box_targets
from densedet.modeling.guidance.prompts import PromptedTextEncoder
from densedet.modeling.guidance.scores import score_map

__all__ = [
    "BoxScoreLoss",
    "ContextDecoder",
    "DenseCLIP",
    "Guidance",
    "Guided",
    "PixelScoreLoss",
    "PromptedTextEncoder",
    "box_targets",
    "score_map",
]
