"""What the transformer towers, EVA and ViT, share as dense encoders: tokens through blocks."""

from abc import abstractmethod
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from densedet.clip.position import Grid
from densedet.clip.visual import ClipVisual, DensePath, VisualFeatures


class TokenVisual(ClipVisual):
    """The transformer families: tokens ``[B, 1 + hw, C]`` with CLS first, and N residual blocks.

    Taps are ``block0`` .. ``block{N-1}``, raw outputs of the blocks without CLS; the last is the
    output of the value path. The dense map and the image embedding share the first N-1 blocks.
    """

    def __init__(self, tower: Any, *, stride: int, embed_dim: int, width: int, depth: int) -> None:
        """Describe a tower of ``depth`` blocks and ``width`` channels."""
        names = [f"block{i}" for i in range(depth)]
        super().__init__(
            tower,
            stride=stride,
            embed_dim=embed_dim,
            tap_channels=dict.fromkeys(names, width),
            tap_strides=dict.fromkeys(names, stride),
        )
        self.depth = depth

    @abstractmethod
    def embed_tokens(self, images: Tensor) -> Tensor:
        """Tokens that enter block 0, ``[B, 1 + hw, C]``: patches, CLS, positions, input norm."""

    @abstractmethod
    def _run_block(self, index: int, tokens: Tensor, grid: Grid) -> Tensor:
        """An ordinary block, ``[B, 1 + hw, C]`` to the same."""

    @abstractmethod
    def _attend_values(self, tokens: Tensor) -> Tensor:
        """Attention branch of the last block if every token attended to itself alone."""

    @abstractmethod
    def _run_mlp(self, tokens: Tensor) -> Tensor:
        """MLP branch of the last block."""

    @abstractmethod
    def _project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection, ``[..., C]`` to ``[..., D]``."""

    def _encode(
        self, images: Tensor, taps: frozenset[str], dense: bool, pooled: bool
    ) -> VisualFeatures:
        grid = self._grid(images)
        features = VisualFeatures()
        last = self.depth - 1
        value_path = dense or f"block{last}" in taps
        shared = last if value_path or pooled else blocks_needed(taps)
        tokens = self._run_blocks(images, grid, shared, taps, features)
        if value_path:
            patches = self._checkpointed(self._run_value_path, tokens[:, 1:])
            if f"block{last}" in taps:
                features.taps[f"block{last}"] = _to_map(patches, grid)
            if dense:
                features.dense = self._unit_map(patches, grid)
        if pooled:
            tokens = self._checkpointed(self._run_block, last, tokens, grid)
            features.pooled = self._project(tokens[:, 0])
        return features

    def _embed_locations(self, images: Tensor, taps: frozenset[str]) -> VisualFeatures:
        grid = self._grid(images)
        features = VisualFeatures()
        count = self.depth if self.embeds else blocks_needed(taps)
        tokens = self._run_blocks(images, grid, count, taps, features)
        if self.embeds:
            embedded = self._project(tokens)
            features.pooled, features.dense = embedded[:, 0], _to_map(embedded[:, 1:], grid)
        return features

    def _run_blocks(
        self,
        images: Tensor,
        grid: Grid,
        count: int,
        taps: frozenset[str] = frozenset(),
        features: VisualFeatures | None = None,
    ) -> Tensor:
        """Tokens after the first ``count`` ordinary blocks; their taps go into ``features``."""
        tokens = self.embed_tokens(images)
        for index in range(count):
            tokens = self._checkpointed(self._run_block, index, tokens, grid)
            if features is not None and f"block{index}" in taps:
                features.taps[f"block{index}"] = _to_map(tokens[:, 1:], grid)
        return tokens

    def _run_value_path(self, tokens: Tensor) -> Tensor:
        """The last block with its attention replaced by the value path; tokens do not mix."""
        tokens = tokens + self._attend_values(tokens)
        return tokens + self._run_mlp(tokens)

    def _other_dense_map(self, images: Tensor, path: DensePath) -> Tensor:
        grid = self._grid(images)
        count = self.depth if path == "tokens" else self.depth - 1
        patches = self._run_blocks(images, grid, count)[:, 1:]
        if path == "values":
            patches = self._checkpointed(self._attend_values, patches)
        return self._unit_map(patches, grid)

    def _unit_map(self, tokens: Tensor, grid: Grid) -> Tensor:
        return _to_map(F.normalize(self._project(tokens), dim=-1), grid)


def _to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """``[B, h * w, C]`` row-major to ``[B, C, h, w]``, a view (channels last in memory)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def blocks_needed(taps: frozenset[str]) -> int:
    """How many blocks of a transformer run for its taps."""
    return 1 + max((int(tap.removeprefix("block")) for tap in taps), default=-1)
