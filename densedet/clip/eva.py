"""EVA-02 CLIP towers (arXiv 2303.11331): timm's ``Eva`` inside open_clip's ``TimmModel``."""

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from densedet.clip.position import Grid, RotaryTables, resample_positions
from densedet.clip.token_visual import TokenVisual
from densedet.clip.visual import require
from densedet.errors import ConfigError


class EvaVisual(TokenVisual):
    """EVA tower as dense encoder; see :class:`densedet.clip.visual.ClipVisual`.

    Positions are resampled and the rotary table is recomputed for each grid size. With separate q,
    k, v projections the last block's q and k get no gradient (None) through the dense map.
    """

    tower: TimmModel

    def __init__(self, tower: TimmModel) -> None:
        """Wrap an open_clip ``TimmModel``; ConfigError if its trunk is not a pre-norm EVA."""
        trunk = tower.trunk
        _check_trunk(trunk)
        super().__init__(
            tower,
            stride=trunk.patch_embed.patch_size[0],
            embed_dim=_embed_dim(tower),
            width=trunk.embed_dim,
            depth=len(trunk.blocks),
        )
        self.rotary = _rotary_tables(trunk)

    def embed_tokens(self, images: Tensor) -> Tensor:
        """See :meth:`densedet.clip.token_visual.TokenVisual.embed_tokens`."""
        trunk = self.tower.trunk
        patches = trunk.patch_embed.proj(images)
        grid = tuple(patches.shape[2:])
        patches = trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        cls = trunk.cls_token.expand(len(patches), -1, -1)
        positions = resample_positions(trunk.pos_embed, grid, trunk.patch_embed.grid_size)
        # under autocast the sum is fp32, and so are the residuals of all blocks, as timm has them
        return torch.cat([cls.to(positions.dtype), patches], dim=1) + positions

    def _run_block(self, index: int, tokens: Tensor, grid: Grid) -> Tensor:
        rope = None if self.rotary is None else self.rotary(grid, tokens.device)
        return self.tower.trunk.blocks[index](tokens, rope=rope)

    def _attend_values(self, tokens: Tensor) -> Tensor:
        block = self.tower.trunk.blocks[-1]
        values = _values(block.attn, block.norm1(tokens))
        return block.attn.proj(block.attn.norm(values))

    def _run_mlp(self, tokens: Tensor) -> Tensor:
        block = self.tower.trunk.blocks[-1]
        return block.mlp(block.norm2(tokens))

    def _project(self, tokens: Tensor) -> Tensor:
        trunk = self.tower.trunk
        return self.tower.head(trunk.head(trunk.norm(tokens)))


def _values(attention: EvaAttention, tokens: Tensor) -> Tensor:
    """Value projection, of separate or of fused q, k, v (the last third)."""
    if attention.qkv is None:
        return attention.v_proj(tokens)
    weight = attention.qkv.weight
    return F.linear(tokens, weight[-(weight.shape[0] // 3) :], attention.v_bias)


def _check_trunk(trunk: Eva) -> None:
    require(
        isinstance(trunk, Eva),
        f"timm built {type(trunk).__name__} where Eva is needed; unset TIMM_USE_NAFLEX if it is "
        "set, or choose an EVA02, ViT or ResNet CLIP",
    )
    require(
        trunk.cls_token is not None
        and trunk.num_prefix_tokens == 1
        and trunk.pos_embed is not None,
        "EVA without CLS token and position table, or with register tokens",
    )
    require(not trunk.no_embed_class, "EVA whose position table has no CLS entry")
    require(
        isinstance(trunk.fc_norm, nn.Identity) and isinstance(trunk.norm_pre, nn.Identity),
        "EVA with a norm before the blocks or after pooling",
    )
    require(trunk.global_pool == "token", f"EVA with {trunk.global_pool!r} pooling, not CLS")
    for block in trunk.blocks:
        require(
            type(block) is EvaBlock,
            f"EVA of {type(block).__name__}, only pre-norm EvaBlock has a value path here",
        )
        require(block.gamma_1 is None and block.gamma_2 is None, "EVA with layer scale")
        require(getattr(block.attn, "gate", None) is None, "EVA with gated attention")


def _rotary_tables(trunk: Eva) -> RotaryTables | None:
    rope: Any = trunk.rope
    if rope is None:
        return None
    plain = not (trunk.rope_mixed or rope.in_pixels or rope.grid_offset)
    plain = plain and getattr(rope, "grid_indexing", "ij") == "ij"
    require(
        plain and rope.ref_feat_shape is not None and not getattr(rope, "rotate_half", False),
        "EVA with another rotary embedding than the axial one of EVA-02",
    )
    attention: Any = trunk.blocks[0].attn
    return RotaryTables(attention.head_dim, tuple(rope.ref_feat_shape), rope.temperature)


def _embed_dim(tower: TimmModel) -> int:
    for module in (getattr(tower.head, "proj", None), tower.trunk.head):
        if isinstance(module, nn.Linear):
            return module.out_features
    raise ConfigError("unsupported CLIP image tower: EVA without a linear projection")
