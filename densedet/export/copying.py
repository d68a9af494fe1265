"""Copies of models that can be traced: without text tower and without caches."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from densedet.clip.eva import EvaVisual
from densedet.clip.position import Grid, RotaryTables, rotary_table
from densedet.errors import ConfigError
from densedet.modeling.backbone import ClipBackbone, find_guided
from densedet.modeling.guidance import PromptedTextEncoder
from densedet.modeling.meta_arch.open_vocabulary import OpenVocabularyModel

Model = TypeVar("Model", bound=nn.Module)


class FixedText(nn.Module):
    """Stands in for a `PromptedTextEncoder` whose contexts do not depend on the image.

    Args:
        text: in evaluation mode.

    Attributes:
        vocabulary: what it embedded.
        groups: [P] int64, the category of every name.
    """

    groups: Tensor
    embeddings: Tensor

    def __init__(self, text: PromptedTextEncoder) -> None:
        super().__init__()
        self.vocabulary = text.vocabulary
        self.register_buffer("groups", text.groups.clone())
        self.register_buffer("embeddings", text().clone())

    def forward(self) -> Tensor:
        """[1, P, E]."""
        return self.embeddings


class UncachedRotary:
    """Stands in for `RotaryTables`: makes the table anew, so that a tracer sees how.

    Args:
        tables: of the tower.
    """

    def __init__(self, tables: RotaryTables) -> None:
        self.dim, self.reference = tables.dim, tables.reference
        self.temperature = tables.temperature

    def __call__(self, grid: Grid, device: torch.device) -> Tensor:
        """Sine and cosine side by side, as of `RotaryTables`."""
        pair = rotary_table(grid, self.dim, self.reference, self.temperature, device)
        return torch.cat(pair, dim=-1)


def traceable_copy(model: Model) -> Model:
    """A copy in evaluation mode, without gradient, whose present vocabulary is embedded.

    Args:
        model: in evaluation mode; it stays as it is.

    Raises:
        ConfigError: its text tower runs for every picture.
    """
    memo: dict[int, Any] = {}
    guided = find_guided(model)
    if guided is not None:
        guidance: Any = guided.guidance
        _check_static(guidance)
        memo[id(guidance.text)] = FixedText(guidance.text)
    copied = copy.deepcopy(model, memo).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, ClipBackbone):
            module.cache_size = 0
        if isinstance(module, EvaVisual) and module.rotary is not None:
            module.rotary = UncachedRotary(module.rotary)  # type: ignore[assignment]
    if isinstance(copied, OpenVocabularyModel):
        copied.set_classes(copied.embedder(copied.vocabulary))
    return copied


def _check_static(guidance: Any) -> None:
    condition = getattr(guidance, "condition", None)
    adapts = condition is not None and condition.mode != "static"
    if adapts or getattr(guidance, "prompting", "post") == "pre":
        raise ConfigError(
            f"the prompts of this {type(guidance).__name__} depend on the image, so its text tower "
            "runs for every picture and cannot be left out; export a model with static or "
            "post-model prompts"
        )
