"""Score maps: how similar every location is to every category."""

import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.clip.precision import full_precision
from densedet.errors import ConfigError
from densedet.modeling.scores import max_over_groups


def score_map(dense: Tensor, text: Tensor, groups: Tensor, num_classes: int) -> Tensor:
    """Cosine of every location with every category (DenseCLIP, arXiv 2112.01518).

    Args:
        dense: [B, E, h, w] embeddings of the locations.
        text: [B, P, E] embeddings of the prompted names.
        groups: [P] int64, the category of every name; a category scores the maximum of its names.
        num_classes: K.

    Returns:
        [B, K, h, w] in fp32, also under autocast: a division by a small temperature follows.
    """
    with full_precision(dense.device):
        locations = F.normalize(dense.float(), dim=1)
        cosines = torch.einsum("beyx,bpe->bpyx", locations, F.normalize(text.float(), dim=2))
    if len(groups) == num_classes:
        return cosines  # groups ascend, so every name is a category of its own
    return max_over_groups(cosines, groups, num_classes)


def append_scores(features: dict[str, Tensor], name: str, scores: Tensor) -> dict[str, Tensor]:
    """The levels with score maps [B, K, h, w] behind the channels of one; ConfigError on sizes."""
    level = features[name]
    if level.shape[-2:] != scores.shape[-2:]:
        raise ConfigError(
            f"scores of {tuple(scores.shape[-2:])} cells cannot be appended to {name} of "
            f"{tuple(level.shape[-2:])}: choose the level that has the stride of the dense "
            "embedding"
        )
    return {**features, name: torch.cat([level, scores.to(level.dtype)], dim=1)}
