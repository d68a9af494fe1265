"""Language guidance between a backbone and a neck: prompts, context decoders, score maps."""

from densedet.modeling.guidance.base import Guidance, Guided
from densedet.modeling.guidance.conditioning import PromptCondition
from densedet.modeling.guidance.contrast import AlignGuidedContrast
from densedet.modeling.guidance.decoder import ContextDecoder
from densedet.modeling.guidance.denseclip import DenseCLIP
from densedet.modeling.guidance.icpc import ICPC
from densedet.modeling.guidance.language_bridge import LanguageBridge
from densedet.modeling.guidance.losses import BoxScoreLoss, PixelScoreLoss, box_targets
from densedet.modeling.guidance.multiscale import MultiScaleGuided
from densedet.modeling.guidance.prompts import PromptedTextEncoder
from densedet.modeling.guidance.scores import score_map

__all__ = [
    "AlignGuidedContrast",
    "BoxScoreLoss",
    "ContextDecoder",
    "DenseCLIP",
    "Guidance",
    "Guided",
    "ICPC",
    "LanguageBridge",
    "MultiScaleGuided",
    "PixelScoreLoss",
    "PromptCondition",
    "PromptedTextEncoder",
    "box_targets",
    "score_map",
]
