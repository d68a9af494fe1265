"""CLIP image towers as dense encoders: one interface over the EVA, ViT and ResNet families."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densedet.clip.position import Grid
from densedet.errors import ConfigError

DensePath = Literal["value", "tokens", "values"]


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

    DenseCLIP (arXiv 2112.01518) reads the dense map of the ordinary pass instead, attention
    included: `embed_locations`.

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
        checkpointing: whether a forward pass with gradients keeps only the input of each block (of
            a ResNet, of each bottleneck) and computes the rest again in the backward pass: the same
            results for less memory and about a third more time. Batch norms in training mode would
            count their statistics twice; keep them in eval mode. False at first.
        embeds: whether the tower still has its embedding, see `drop_embedding`.
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
        self.checkpointing = False
        self.embeds = True
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
            ConfigError: an embedding is requested of a tower without, see `drop_embedding`.
        """
        self._grid(images)
        return self._encode(images, self._known(taps), dense, pooled)

    def embed_locations(self, images: Tensor, taps: Sequence[str] = ()) -> VisualFeatures:
        """Encode images by the ordinary pass, whose attention mixes the locations to the end.

        Args:
            images: ``[B, 3, H, W]`` as for `forward`; of a ResNet, H and W of 32 or more will do,
                and odd sizes lose their last row or column.
            taps: names of inner maps; the last block's is its ordinary output here.

        Returns:
            The taps, ``dense`` ``[B, D, h, w]`` and ``pooled`` ``[B, D]``, neither of them
            normalised; both None after `drop_embedding`, and then no block runs after the last
            tap.

        Raises:
            ValueError: as for `forward`.
        """
        return self._embed_locations(images, self._known(taps))

    def drop_embedding(self) -> None:
        """Delete the parameters that only the embedding needs; from then on there are taps alone.

        Raises:
            ConfigError: this is not possible for the tower's family.
        """
        raise ConfigError(
            f"the embedding of a {type(self.tower).__name__} cannot be dropped; use a ViT or ResNet"
        )

    def resize_positions(self, grid: int) -> None:
        """Replace the position table by its bilinear resize to ``grid`` x ``grid`` cells.

        DenseCLIP (arXiv 2112.01518) does so when it loads CLIP's weights; images of another size
        are resampled from there. ``image_size`` becomes the size that the new table is for.

        Raises:
            ConfigError: this is not possible for the tower's family.
        """
        raise ConfigError(
            f"the positions of a {type(self.tower).__name__} cannot be resized; use a ViT or ResNet"
        )

    def embed_images(self, images: Tensor) -> Tensor:
        """Image embeddings ``[B, D]``, not normalised, of normalised images ``[B, 3, H, W]``."""
        embedding = self(images, dense=False).pooled
        assert embedding is not None
        return embedding

    def dense_map(self, images: Tensor, path: DensePath = "value") -> Tensor:
        """Dense map alone, by one of three ways through the last block.

        Args:
            images: ``[B, 3, H, W]``, as for `forward`.
            path: "value", the dense map of `forward`; "tokens", the patch tokens of the ordinary
                last block, attention included; "values", the attention branch of the value path
                alone, without residual and MLP, which is the form of MaskCLIP (arXiv 2112.01071).
                Final norm and projection follow in all three.

        Returns:
            ``[B, D, h, w]``, a unit vector at each location.

        Raises:
            ConfigError: the tower has no such path (a ResNet has "value" only).
            ValueError: as for `forward`.
        """
        if path not in get_args(DensePath):
            raise ConfigError(f"no dense path {path!r}; there are {', '.join(get_args(DensePath))}")
        if path != "value":
            return self._other_dense_map(images, path)
        dense = self(images, pooled=False).dense
        assert dense is not None
        return dense

    def _other_dense_map(self, images: Tensor, path: DensePath) -> Tensor:
        raise ConfigError(
            f"the dense path {path!r} needs a transformer, this tower is a "
            f"{type(self.tower).__name__}; use 'value'"
        )

    def _checkpointed(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Call ``function``; what it keeps for the backward pass depends on `checkpointing`."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return function(*args)
        # Only dropout and drop path draw random numbers, and only in training mode.
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=self.training)

    @abstractmethod
    def _encode(
        self, images: Tensor, taps: frozenset[str], dense: bool, pooled: bool
    ) -> VisualFeatures:
        """Compute what is requested; the input has been checked."""

    @abstractmethod
    def _embed_locations(self, images: Tensor, taps: frozenset[str]) -> VisualFeatures:
        """As `embed_locations`; the taps have been checked, the images not."""

    def _known(self, taps: Sequence[str]) -> frozenset[str]:
        unknown = [name for name in taps if name not in self.tap_channels]
        if unknown:
            raise ValueError(f"no such taps: {unknown}; this tower has {', '.join(self.tap_names)}")
        return frozenset(taps)

    def _require_embedding(self) -> None:
        if not self.embeds:
            raise ConfigError(
                f"the embedding of this {type(self.tower).__name__} was dropped, it gives taps "
                "only: make the tower again, or request neither dense map nor image embedding"
            )

    def _grid(self, images: Tensor) -> Grid:
        height, width = image_size(images)
        if height % self.stride or width % self.stride or not height or not width:
            raise ValueError(
                f"an image of {height}x{width} (HxW) does not fit a tower of stride {self.stride}: "
                f"pad it to multiples of {self.stride}"
            )
        return height // self.stride, width // self.stride


def image_size(images: Tensor) -> tuple[int, int]:
    """Height and width of ``[B, 3, H, W]``; ValueError for another shape."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {tuple(images.shape)}")
    return images.shape[2], images.shape[3]


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def require(supported: bool, what: str) -> None:
    """Raise ConfigError unless a tower has the structure that its family's file relies on."""
    if not supported:
        raise ConfigError(f"unsupported CLIP image tower: {what}")
