"""Score maps of several levels, compared with one set of text embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.modeling.checks import check_choice
from densedet.modeling.guidance.base import Guided

Fuse = Literal["concat", "mean"]


@dataclass
class MultiScaleGuided(Guided):
    """What a guidance with score maps of several levels makes of a batch of B images.

    Attributes:
        supervised: the score maps that the auxiliary loss sees, ``name -> [B, K, h, w]``.
        finest: [B, E, h, w] embeddings of the finest aligned level, not normalised.
        finest_scores: [B, K, h, w], their cosines with the categories.
    """

    supervised: dict[str, Tensor]
    finest: Tensor
    finest_scores: Tensor


class LevelEmbeddings(nn.ModuleDict):
    """One 1x1 convolution a level into the space of the text embeddings; empty for no level.

    ICPC (arXiv 2308.07078) names a lightweight multi-scale alignment; this form is our design.

    Args:
        channels: C of every level.
        embed_dim: E.
    """

    def __init__(self, channels: Mapping[str, int], embed_dim: int) -> None:
        super().__init__({name: nn.Conv2d(c, embed_dim, 1) for name, c in channels.items()})

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Levels [B, C, h, w] -> [B, E, h, w], not normalised; other levels are left out."""
        return {name: conv(features[name]) for name, conv in self.items()}


def check_levels(
    levels: Sequence[str], dense_level: str, channels: Mapping[str, int], fuse: str
) -> list[str]:
    """The levels by name, so the finest first, or ConfigError if they cannot be aligned and fused.

    Args:
        levels: names such as "res4", each once, ``dense_level`` among them.
        dense_level: the level that the dense embedding belongs to.
        channels: C by level, of all ``levels`` but that.
        fuse: a `Fuse`.
    """
    check_choice("fuse", fuse, Fuse)
    if dense_level not in levels or len(set(levels)) != len(levels):
        raise ConfigError(
            f"levels={list(levels)}: name every level once, and {dense_level!r} among them, the "
            "dense_level"
        )
    unknown = [name for name in levels if name != dense_level and name not in channels]
    if unknown:
        raise ConfigError(f"no channels of levels {unknown}: give them in level_channels")
    return sorted(levels)


def mean_scores(scores: Sequence[Tensor]) -> Tensor:
    """The mean of score maps [B, K, h, w], resized bilinearly to the size of the first."""
    size = scores[0].shape[-2:]
    resized = [F.interpolate(s, size=size, mode="bilinear", align_corners=False) for s in scores]
    return torch.stack(resized).mean(dim=0)
