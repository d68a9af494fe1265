"""OpenAI and LAION CLIP ViTs: open_clip's ``VisionTransformer``."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from densedet.clip.position import Grid, PositionMode, resample_positions
from densedet.clip.token_visual import TokenVisual, blocks_needed
from densedet.clip.visual import require


class SelfAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` by `torch.nn.functional.scaled_dot_product_attention`, always.

    Without gradients and autocast torch takes another way, which has the weights ``[B, heads, N,
    N]`` in memory: at N = 1,601 tokens it is slower. The parameters and their names are the same.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of ``nn.MultiheadAttention``, which does what is no self-attention of a batch.

        Args:
            query: ``[B, N, C]``; ``key`` and ``value`` are the same.
            key: see above.
            value: see above.
            key_padding_mask: for ``nn.MultiheadAttention``.
            need_weights: likewise.
            attn_mask: what is added to the products, ``[N, N]`` or ``[B * heads, N, N]``.
            average_attn_weights: for ``nn.MultiheadAttention``.
            is_causal: likewise.

        Returns:
            ``[B, N, C]``, and None for the weights.
        """
        another = query is not key or key is not value or key_padding_mask is not None
        if another or need_weights or is_causal or self.dropout:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (len(query), self.num_heads))
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        heads = projected.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind()
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


class VitVisual(TokenVisual):
    """CLIP ViT as dense encoder; see :class:`densedet.clip.visual.ClipVisual`.

    The attention of its blocks becomes `SelfAttention`, in the tower too.

    ``conv1`` may be any module from images to a patch grid. Patch dropout is not applied (a dense
    map needs every patch). q, k and v of a block are one parameter, so through the dense map the
    thirds of q and k in the last block get a gradient of zeros.

    Attributes:
        positions: how the position table comes to the size of an image.
        double_class_embedding: add the class embedding twice, as the published code of DenseCLIP
            (arXiv 2112.01518) does.
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
        for block in blocks:
            block.attn.__class__ = SelfAttention
        self.positions: PositionMode = "bicubic"
        self.double_class_embedding = False

    def embed_tokens(self, images: Tensor) -> Tensor:
        """See :meth:`densedet.clip.token_visual.TokenVisual.embed_tokens`."""
        tower = self.tower
        patches = tower.conv1(images)
        grid = tuple(patches.shape[2:])
        patches = patches.flatten(2).transpose(1, 2)
        cls = tower.class_embedding
        if self.double_class_embedding:
            cls = 2 * cls
        cls = cls.to(patches.dtype).expand(len(patches), 1, -1)
        table = tower.positional_embedding
        positions = resample_positions(table, grid, tower.grid_size, self.positions)
        return tower.ln_pre(torch.cat([cls, patches], dim=1) + positions.to(patches.dtype))

    def drop_embedding(self) -> None:
        """See :meth:`densedet.clip.visual.ClipVisual.drop_embedding`: final norm, projection."""
        self.tower.ln_post = None
        self.tower.proj = None
        self.embeds = False

    def drop_blocks_after(self, taps: Sequence[str]) -> None:
        """Delete the blocks behind the last of ``taps``; they serve the embedding alone."""
        self.depth = blocks_needed(self._known(taps))
        del self.tower.transformer.resblocks[self.depth :]
        for table in (self.tap_channels, self.tap_strides):
            for name in list(table)[self.depth :]:
                del table[name]

    def resize_positions(self, grid: int) -> None:
        """See :meth:`densedet.clip.visual.ClipVisual.resize_positions`."""
        tower = self.tower
        table = tower.positional_embedding
        resized = resample_positions(table.detach(), (grid, grid), tower.grid_size, "bilinear")
        tower.positional_embedding = nn.Parameter(resized, requires_grad=table.requires_grad)
        tower.grid_size = (grid, grid)
        self.image_size = (grid * self.stride, grid * self.stride)

    def attend_masks(self, images: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Embed regions by attention: a CLS token for each mask that sees only its patches.

        The copies of the CLS token attend to CLS and to the patches of their mask, in all blocks;
        nothing attends to them, so the other tokens are those of an ordinary pass. Called
        ``mask_attn_pool`` (and ``v1`` for boxes, see `box_masks`) in CLIPSelf, arXiv 2310.01403.

        Args:
            images: ``[B, 3, H, W]``, normalised.
            masks: for each image ``[K_i, h, w]`` bool, cells of the patch grid; may be empty.

        Returns:
            ``[K, D]`` image by image, not normalised. An empty mask sees only CLS.
        """
        grid = self._grid(images)
        if len(masks) != len(images) or any(m.shape[1:] != grid for m in masks):
            raise ValueError(f"give masks [K, {grid[0]}, {grid[1]}] for each of the images")
        tokens = self.embed_tokens(images)
        counts = [len(m) for m in masks]
        queries = max(counts, default=0)
        inside = tokens.new_ones(len(masks), queries, grid[0] * grid[1], dtype=torch.bool)
        for row, image_masks in enumerate(masks):
            inside[row, : len(image_masks)] = image_masks.flatten(1).to(tokens.device, torch.bool)
        blocked = tokens.new_zeros(len(masks), queries + tokens.shape[1], queries + tokens.shape[1])
        blocked[:, :, :queries] = -torch.inf
        blocked[:, :queries, queries + 1 :].masked_fill_(~inside, -torch.inf)
        heads = self.tower.transformer.resblocks[0].attn.num_heads
        # heads of one image can share a mask; those of several have one each
        blocked = blocked[0] if len(masks) == 1 else blocked.repeat_interleave(heads, dim=0)
        tokens = torch.cat([tokens[:, :1].expand(-1, queries, -1), tokens], dim=1)
        for block in self.tower.transformer.resblocks:
            tokens = block(tokens, attn_mask=blocked)
        pooled = self._project(tokens[:, :queries])
        return torch.cat([image[:count] for image, count in zip(pooled, counts, strict=True)])

    def _run_block(self, index: int, tokens: Tensor, grid: Grid) -> Tensor:
        return self.tower.transformer.resblocks[index](tokens)

    def _attend_values(self, tokens: Tensor) -> Tensor:
        block = self.tower.transformer.resblocks[-1]
        attention = block.attn
        width = tokens.shape[-1]
        bias = None if attention.in_proj_bias is None else attention.in_proj_bias[-width:]
        values = F.linear(block.ln_1(tokens), attention.in_proj_weight[-width:], bias)
        return block.ls_1(attention.out_proj(values))

    def _run_mlp(self, tokens: Tensor) -> Tensor:
        block = self.tower.transformer.resblocks[-1]
        return block.ls_2(block.mlp(block.ln_2(tokens)))

    def _project(self, tokens: Tensor) -> Tensor:
        self._require_embedding()
        return self.tower.ln_post(tokens) @ self.tower.proj
