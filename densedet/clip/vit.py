"""OpenAI and LAION CLIP ViTs: open_clip's ``VisionTransformer``."""

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor

from densedet.clip.position import Grid, resample_positions
from densedet.clip.visual import TokenVisual, require


class VitVisual(TokenVisual):
    """CLIP ViT as dense encoder; see :class:`densedet.clip.visual.ClipVisual`.

    ``conv1`` may be any module from images to a patch grid. Patch dropout is not applied (a dense
    map needs every patch). q, k and v of a block are one parameter, so through the dense map the
    thirds of q and k in the last block get a gradient of zeros.
    """

    tower: VisionTransformer

    def __init__(self, tower: VisionTransformer) -> None:
        """Wrap an open_clip tower; ConfigError for CoCa pooling or custom blocks."""
        blocks = tower.transformer.resblocks
        require(
            tower.attn_pool is None and tower.pool_type == "tok",
            "ViT with attention or average pooling, not the CLS token",
        )
        require(tower.proj is not None, "ViT without a projection into the text space")
        require(
            tower.transformer.batch_first
            and all(type(block) is ResidualAttentionBlock for block in blocks),
            "ViT with custom attention blocks",
        )
        require(tower.patch_size[0] == tower.patch_size[1], "ViT with patches that are not square")
        super().__init__(
            tower,
            stride=tower.patch_size[0],
            embed_dim=tower.proj.shape[1],
            width=tower.transformer.width,
            depth=len(blocks),
        )

    def embed_tokens(self, images: Tensor) -> Tensor:
        """See :meth:`densedet.clip.visual.TokenVisual.embed_tokens`."""
        tower = self.tower
        patches = tower.conv1(images)
        grid = tuple(patches.shape[2:])
        patches = patches.flatten(2).transpose(1, 2)
        cls = tower.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        positions = resample_positions(tower.positional_embedding, grid, tower.grid_size)
        return tower.ln_pre(torch.cat([cls, patches], dim=1) + positions.to(patches.dtype))

    def _run_block(self, index: int, tokens: Tensor, grid: Grid) -> Tensor:
        return self.tower.transformer.resblocks[index](tokens)

    def _run_value_path(self, tokens: Tensor) -> Tensor:
        block = self.tower.transformer.resblocks[-1]
        attention = block.attn
        width = tokens.shape[-1]
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[-width:]
        values = F.linear(block.ln_1(tokens), attention.in_proj_weight[-width:], bias)
        tokens = tokens + block.ls_1(attention.out_proj(values))
        return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))

    def _project(self, tokens: Tensor) -> Tensor:
        return self.tower.ln_post(tokens) @ self.tower.proj
