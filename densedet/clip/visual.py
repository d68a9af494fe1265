"""CLIP image towers as dense encoders: one interface over the EVA, ViT and ResNet families."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from densedet.clip.position import Grid
from densedet.errors import ConfigError


@dataclass
class VisualFeatures:
    """What a tower says about a batch of images.

    Attributes:
        taps: the requested inner maps, name -> ``[B, C, h, w]``.
        dense: ``[B, D, h, w]``, a unit vector at each location in the space of the text embeddings;
            None if not requested.
        pooled: ``[B, D]`` image embedding, not normalised; None if not requested.
    """

    taps: dict[str, Tensor] = field(default_factory=dict)
    dense: Tensor | None = None
    pooled: Tensor | None = None


class ClipVisual(nn.Module, ABC):
    """An open_clip image tower that also gives inner maps and a dense map, at any H×W of its
    stride.

    The tower is wrapped, not copied or changed: its modules run in another order. The dense map is
    that of MaskCLIP (arXiv 2112.01071) in the form of CLIPSelf (arXiv 2310.01403): the attention of
    the last block (or of the attention pool) is replaced by its value path, residuals and MLP are
    kept.

    Gradients flow through every output. Neither freezing nor train/eval mode is touched here.

    Attributes:
        tower: the open_clip module (``model.visual``).
        stride: pixels per cell of the dense map.
        embed_dim: D.
        image_size: native (height, width) of the weights.
        pixel_mean: RGB means of the weights' training, on the 0..1 scale.
        pixel_std: RGB standard deviations, on the 0..1 scale.
        tap_channels: channels of every tap.
        tap_strides: pixels per cell of every tap.
    """

    def __init__(
        self,
        tower: Any,
        *,
        stride: int,
        embed_dim: int,
        tap_channels: dict[str, int],
        tap_strides: dict[str, int],
    ) -> None:
        """Wrap ``tower``; the families' constructors take the tower alone and examine it."""
        super().__init__()
        self.tower = tower
        self.stride = stride
        self.embed_dim = embed_dim
        self.tap_channels = tap_channels
        self.tap_strides = tap_strides
        self.image_size: tuple[int, int] = _pair(tower.image_size)
        self.pixel_mean: tuple[float, float, float] = tuple(tower.image_mean)
        self.pixel_std: tuple[float, float, float] = tuple(tower.image_std)

    @property
    def tap_names(self) -> tuple[str, ...]:
        """The taps there are, from the input to the output."""
        return tuple(self.tap_channels)

    def forward(
        self, images: Tensor, taps: Sequence[str] = (), dense: bool = True, pooled: bool = True
    ) -> VisualFeatures:
        """Encode images; only what is requested is computed.

        Args:
            images: ``[B, 3, H, W]`` RGB, normalised with ``pixel_mean`` and ``pixel_std``; H and W
                are multiples of ``stride``.
            taps: names of inner maps, of ``tap_names``.
            dense: whether to give the dense map.
            pooled: whether to give the image embedding.

        Raises:
            ValueError: H or W is no multiple of ``stride``, the images are no ``[B, 3, H, W]``, or
                a tap does not exist.
        """
        self._grid(images)
        unknown = [name for name in taps if name not in self.tap_channels]
        if unknown:
            raise ValueError(f"no such taps: {unknown}; this tower has {', '.join(self.tap_names)}")
        return self._encode(images, frozenset(taps), dense, pooled)

    def embed_images(self, images: Tensor) -> Tensor:
        """Image embeddings ``[B, D]``, not normalised, of normalised images ``[B, 3, H, W]``."""
        embedding = self(images, dense=False).pooled
        assert embedding is not None
        return embedding

    @abstractmethod
    def _encode(
        self, images: Tensor, taps: frozenset[str], dense: bool, pooled: bool
    ) -> VisualFeatures:
        """Compute what is requested; the input has been checked."""

    def _grid(self, images: Tensor) -> Grid:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B, 3, H, W], got {tuple(images.shape)}")
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride or not height or not width:
            raise ValueError(
                f"an image of {height}x{width} (HxW) does not fit a tower of stride {self.stride}: "
                f"pad it to multiples of {self.stride}"
            )
        return height // self.stride, width // self.stride


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
    def _run_value_path(self, tokens: Tensor) -> Tensor:
        """The last block with its attention replaced by the value path; tokens do not mix."""

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
        shared = last if value_path or pooled else 1 + max((int(t[5:]) for t in taps), default=-1)
        tokens = self.embed_tokens(images)
        for index in range(shared):
            tokens = self._run_block(index, tokens, grid)
            if f"block{index}" in taps:
                features.taps[f"block{index}"] = _to_map(tokens[:, 1:], grid)
        if value_path:
            patches = self._run_value_path(tokens[:, 1:])
            if f"block{last}" in taps:
                features.taps[f"block{last}"] = _to_map(patches, grid)
            if dense:
                features.dense = _to_map(F.normalize(self._project(patches), dim=-1), grid)
        if pooled:
            features.pooled = self._project(self._run_block(last, tokens, grid)[:, 0])
        return features


def _to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """``[B, h * w, C]`` row-major to ``[B, C, h, w]``, a view (channels last in memory)."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def require(supported: bool, what: str) -> None:
    """Raise ConfigError unless a tower has the structure that its family's file relies on."""
    if not supported:
        raise ConfigError(f"unsupported CLIP image tower: {what}")
