"""EfficientFormer for images of any size."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.efficientformer import Attention
from torch import Tensor, nn


class GridAttention(nn.Module):
    """The attention of timm's EfficientFormer (arXiv 2206.01191) on any grid of locations.

    timm's knows the biases of 7x7 offsets, so it takes images of 224x224 pixels alone. Here the
    table of the biases is resized bilinearly, its first and last offset staying in place; on a grid
    of 7x7 nothing changes. This is ours, not the published segmentation model's.

    Args:
        attention: of timm; its weights are taken over.

    Attributes:
        grid: rows and columns of the locations; `forward_levels` sets them before.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.attention_biases = attention.attention_biases  # [heads, offsets in y * offsets in x]
        self.num_heads = attention.num_heads
        self.sizes = (attention.key_dim, attention.key_dim, attention.val_dim)
        self.side = int(attention.attention_biases.shape[1] ** 0.5)
        self.grid = (self.side, self.side)

    def forward(self, tokens: Tensor) -> Tensor:
        """Locations [B, rows * columns, C] -> the same shape."""
        heads = self.qkv(tokens).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = heads.split(self.sizes, dim=3)
        bias = self._biases().to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _biases(self) -> Tensor:
        """[heads, rows * columns, rows * columns], by the absolute offsets of two locations."""
        table = self.attention_biases.unflatten(1, (self.side, self.side))
        if self.grid != (self.side, self.side):
            table = F.interpolate(table[None], self.grid, mode="bilinear", align_corners=True)[0]
        rows, columns = (torch.arange(side, device=table.device) for side in self.grid)
        dy, dx = (rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()
        return table[:, dy[:, None, :, None], dx[None, :, None]].flatten(3).flatten(1, 2)


def free_grids(model: nn.Module) -> list[GridAttention]:
    """Replace the EfficientFormer attentions in a timm model; other models have none."""
    found = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Attention):
                found.append(GridAttention(child))
                setattr(parent, name, found[-1])
    return found


def forward_levels(model: Any, attentions: list[GridAttention], images: Tensor) -> list[Tensor]:
    """The four levels of a timm EfficientFormer, as `forward_intermediates` gives them.

    Its own rounds the grid of the last one down, which images of no multiple of 32 do not fit.

    Args:
        model: of timm, its attentions replaced.
        attentions: of `free_grids`.
        images: [B, 3, H, W].

    Returns:
        Each [B, C, ceil(H / stride), ceil(W / stride)], strides 4 to 32.
    """
    *stages, last = model.stages
    levels = [model.stem(images)]
    for stage in stages:
        levels.append(stage(levels[-1]))
    rows, columns = (-(-side // 2) for side in levels[-1].shape[-2:])
    for attention in attentions:
        attention.grid = (rows, columns)
    tokens = last(levels[-1])
    return [*levels[1:], tokens.transpose(1, 2).unflatten(2, (rows, columns))]
