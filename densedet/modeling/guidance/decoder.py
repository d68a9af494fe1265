"""The context decoder of DenseCLIP: text looks at the image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densedet.errors import ConfigError


def attend(queries: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """Multi-head attention without projections: [B, Q, C] and twice [B, M, C] -> [B, Q, C]."""
    split = (tokens.unflatten(2, (heads, -1)).transpose(1, 2) for tokens in (queries, keys, values))
    return F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class _Attention(nn.Module):
    """Multi-head attention without biases on queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        projected = self.q_proj(queries), self.k_proj(memory), self.v_proj(memory)
        return self.proj_drop(self.proj(attend(*projected, self.heads)))


class _Layer(nn.Module):
    """Pre-norm layer: self-attention, attention to the memory, MLP."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = _Attention(width, heads, dropout)
        self.cross_attn = _Attention(width, heads, dropout)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attn(normed, normed)
        tokens = tokens + self.cross_attn(self.norm2(tokens), memory)
        return tokens + self.dropout(self.mlp(self.norm3(tokens)))


class ContextDecoder(nn.Module):
    """A small transformer decoder whose memory is the image (DenseCLIP, arXiv 2112.01518).

    The memory is projected once and has no self-attention; nothing has positions.

    Args:
        embed_dim: E, channels of the memory.
        width: channels inside.
        heads: heads of both attentions; they divide ``width``.
        layers: how many; DenseCLIP's released models have 3.
        dropout: after each attention, inside and after the MLP; not on attention weights.
        query_dim: channels of the queries and of the output; None for E.

    Raises:
        ConfigError: the heads do not divide the width.
    """

    def __init__(
        self,
        embed_dim: int,
        width: int = 256,
        heads: int = 4,
        layers: int = 3,
        dropout: float = 0.1,
        query_dim: int | None = None,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"{heads} heads do not divide a context decoder {width} wide")
        self.embed_dim = embed_dim
        self.query_dim = embed_dim if query_dim is None else query_dim
        self.memory_proj = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, width), nn.LayerNorm(width)
        )
        self.text_proj = nn.Sequential(
            nn.LayerNorm(self.query_dim), nn.Linear(self.query_dim, width)
        )
        self.layers = nn.ModuleList(_Layer(width, heads, dropout) for _ in range(layers))
        self.out_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.query_dim))
        self.apply(_init_linear)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Let queries [B, Q, query_dim] look at ``memory`` [B, 1 + hw, E] -> [B, Q, query_dim].

        The memory is the image's embedding followed by those of its locations, not normalised.
        """
        memory = self.memory_proj(memory)
        tokens = self.text_proj(queries)
        for layer in self.layers:
            tokens = layer(tokens, memory)
        return self.out_proj(tokens)


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def image_memory(dense: Tensor, pooled: Tensor) -> Tensor:
    """What a context decoder looks at: [B, 1 + hw, E], the image before its locations."""
    return torch.cat([pooled[:, None], dense.flatten(2).transpose(1, 2)], dim=1)
