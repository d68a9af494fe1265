"""CLIP's attention pool with every location as a query: pooled and dense embeddings in one pass."""

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn

from densedet.clip.position import PositionMode, resample_positions


class AttentionPool(nn.Module):
    """Attention pool on any backbone's last stage, with random weights.

    DenseCLIP (arXiv 2112.01518, section 4.3) puts it on backbones that CLIP did not train, to map
    them into the space of the text embeddings. Parameters, names and initialisation are those of
    CLIP's ``attnpool``.

    Args:
        channels: C of the maps, a multiple of ``head_dim``.
        embed_dim: E.
        grid: rows and columns of the position table; other sizes are resampled bilinearly.
        head_dim: channels of one attention head.

    Raises:
        ValueError: ``channels`` is no multiple of ``head_dim``.
    """

    def __init__(self, channels: int, embed_dim: int, grid: int, head_dim: int = 64) -> None:
        super().__init__()
        if channels % head_dim:
            raise ValueError(f"{channels} channels are no multiple of {head_dim}, the head_dim")
        self.num_heads = channels // head_dim
        std = channels**-0.5
        self.positional_embedding = nn.Parameter(std * torch.randn(1 + grid * grid, channels))
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)
        for projection in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=std)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``[B, C, h, w]`` to pooled ``[B, E]`` and dense ``[B, E, h, w]``, see
        `attend_all`."""
        return attend_all(self, maps, "bilinear")


def attend_all(
    pool: AttentionPool2d | AttentionPool, maps: Tensor, positions: PositionMode
) -> tuple[Tensor, Tensor]:
    """Full self-attention of the mean and all locations (DenseCLIP, arXiv 2112.01518).

    CLIP's own pool asks with the mean alone; here every location is a query as well.

    Args:
        pool: its positions, projections and number of heads.
        maps: ``[B, C, h, w]``.
        positions: how the position table comes to h x w, see `resample_positions`.

    Returns:
        pooled ``[B, E]``, which is CLIP's image embedding, and dense ``[B, E, h, w]``; neither is
        normalised.

    Raises:
        ValueError, ConfigError: as for `resample_positions`.
    """
    tokens = pool_tokens(pool, maps, positions)
    embedded = attend(pool, tokens, tokens, pool.v_proj(tokens))
    dense = embedded[:, 1:].transpose(1, 2).unflatten(2, maps.shape[2:])
    return embedded[:, 0], dense


def pool_tokens(
    pool: AttentionPool2d | AttentionPool, maps: Tensor, positions: PositionMode
) -> Tensor:
    """What the pool attends to: the mean and all locations, with positions, ``[B, 1 + hw, C]``."""
    tokens = maps.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    grid = (maps.shape[2], maps.shape[3])
    table = resample_positions(pool.positional_embedding, grid, mode=positions)
    return tokens + table.to(tokens.dtype)


def attend(
    pool: AttentionPool2d | AttentionPool, queries: Tensor, tokens: Tensor, values: Tensor
) -> Tensor:
    """Embeddings ``[B, Q, E]`` of tokens ``[B, Q, C]`` that ask among ``[B, N, C]``.

    Args:
        pool: the projections and the number of heads.
        queries: some of the tokens.
        tokens: of `pool_tokens`.
        values: ``pool.v_proj(tokens)``.
    """
    query, key, value = (
        x.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
        for x in (pool.q_proj(queries), pool.k_proj(tokens), values)
    )
    mixed = F.scaled_dot_product_attention(query, key, value)
    return pool.c_proj(mixed.transpose(1, 2).flatten(2))
