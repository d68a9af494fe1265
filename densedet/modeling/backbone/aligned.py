"""CLIP towers as trainable trunks: four levels, and embeddings of the image and its locations."""

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from timm.layers import DropPath
from torch import Tensor, nn

from densedet.clip import ClipVisual
from densedet.clip.resnet import ResNetVisual
from densedet.clip.visual import VisualFeatures
from densedet.clip.vit import VitVisual
from densedet.modeling.backbone.pyramid import resize_layers

DENSE_EMBEDDING = "clip_dense"
POOLED_EMBEDDING = "clip_pooled"


class AlignedBackbone(Backbone):
    """Levels "res2" .. "res5" and, where they are aligned with a text tower, embeddings.

    `forward` also returns ``"clip_dense"`` [B, E, h, w] and ``"clip_pooled"`` [B, E], not
    normalised; `output_shape` describes the levels alone, since no neck takes the embeddings.

    Attributes:
        embed_dim: E; None without embeddings.
        pixel_mean, pixel_std: of RGB on the 0..1 scale, those of the weights' training.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[float],
        embed_dim: int | None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.pixel_mean = tuple(pixel_mean)
        self.pixel_std = tuple(pixel_std)
        self._shapes = {
            f"res{level}": ShapeSpec(channels=c, stride=s)
            for level, (c, s) in enumerate(zip(channels, strides, strict=True), start=2)
        }

    @property
    def size_divisibility(self) -> int:
        return int(max(shape.stride for shape in self._shapes.values()))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the levels."""
        return dict(self._shapes)

    def _outputs(
        self, levels: Sequence[Tensor], dense: Tensor | None, pooled: Tensor | None
    ) -> dict[str, Tensor]:
        outputs = dict(zip(self._shapes, levels, strict=True))
        if dense is not None and pooled is not None:
            outputs |= {DENSE_EMBEDDING: dense, POOLED_EMBEDDING: pooled}
        return outputs


class _ClipTrunk(AlignedBackbone):
    """What the CLIP families share; every parameter trains."""

    def __init__(
        self, visual: ClipVisual, aligned: bool, channels: Sequence[int], strides: Sequence[float]
    ) -> None:
        embed_dim = visual.embed_dim if aligned else None
        super().__init__(channels, strides, embed_dim, visual.pixel_mean, visual.pixel_std)
        if not aligned:
            visual.drop_embedding()
        visual.requires_grad_(True)
        self.visual = visual

    def _encode(self, images: Tensor, taps: Sequence[str]) -> tuple[list[Tensor], VisualFeatures]:
        features = self.visual.embed_locations(images, taps)
        return [features.taps[name] for name in taps], features


@BACKBONE_REGISTRY.register()
class AlignedResNet(_ClipTrunk):
    """The trunk of a CLIP ResNet with its attention pool at every location.

    DenseCLIP (arXiv 2112.01518): all stages and the attention pool train, batch norms included.

    Args:
        visual: the tower, see `densedet.clip.create_aligned_visual`; it is taken over: all its
            parameters are set to train.
        aligned: give the embeddings; False deletes the attention pool (CLIP as a plain trunk).
    """

    visual: ResNetVisual

    def __init__(self, visual: ResNetVisual, aligned: bool = True) -> None:
        taps = ("layer1", "layer2", "layer3", "layer4")
        channels = [visual.tap_channels[name] for name in taps]
        strides = [visual.tap_strides[name] for name in taps]
        super().__init__(visual, aligned, channels, strides)
        self._taps = taps

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] -> "res2" .. "res5" [B, C, h, w], and the embeddings."""
        levels, features = self._encode(images, self._taps)
        return self._outputs(levels, features.dense, features.pooled)


@BACKBONE_REGISTRY.register()
class AlignedViT(_ClipTrunk):
    """A CLIP ViT, four of its blocks resized into levels, with embeddings of all final tokens.

    DenseCLIP (arXiv 2112.01518): a group norm of one group on each tap, then x4 by two transposed
    convolutions with norm and GELU between, x2 by one, x1, x0.5 by max pooling.

    Args:
        visual: the tower, see `densedet.clip.create_aligned_visual`; it is taken over: all its
            parameters are set to train.
        aligned: give the embeddings; False deletes the final norm, the projection and the blocks
            behind the last tap.
        taps: blocks, from the finest level to the coarsest.
        scales: resize factor of each tap: 4, 2, 1, 0.5 or 0.25.
        drop_path: stochastic depth (arXiv 1603.09382) in training: the probability that an image
            skips a branch of the last block; it grows linearly from 0 at the first.
        norm: Detectron2 norm name inside the x4 resizer; "" for none.

    Raises:
        ValueError: taps and scales that do not match, no such tap or scale, or ``drop_path`` for
            a tower with layer scale.
    """

    visual: VitVisual

    def __init__(
        self,
        visual: VitVisual,
        aligned: bool = True,
        taps: Sequence[str] = ("block3", "block5", "block7", "block11"),
        scales: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        drop_path: float = 0.0,
        norm: str = "BN",
    ) -> None:
        unknown = [name for name in taps if name not in visual.tap_channels]
        if unknown or len(taps) != len(scales):
            raise ValueError(
                f"{len(taps)} taps for {len(scales)} scales, no such taps {unknown}; "
                f"there are {', '.join(visual.tap_names)}"
            )
        channels = [visual.tap_channels[name] for name in taps]
        strides = [_divide(visual.stride, scale) for scale in scales]
        super().__init__(visual, aligned, channels, strides)
        if not aligned:
            visual.drop_blocks_after(taps)
        self._taps = tuple(taps)
        self.levels = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(1, width), *resize_layers(scale, width, norm))
            for scale, width in zip(scales, channels, strict=True)
        )
        if drop_path:
            _drop_paths(visual, drop_path)

    @property
    def size_divisibility(self) -> int:
        return max(self.visual.stride, super().size_divisibility)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] -> "res2" .. "res5" [B, C, h, w], and the embeddings."""
        taps, features = self._encode(images, self._taps)
        levels = [level(tap) for level, tap in zip(self.levels, taps, strict=True)]
        return self._outputs(levels, features.dense, features.pooled)


def _divide(stride: int, scale: float) -> float:
    """The stride of a resized tap; an integer where it is one."""
    quotient = stride / scale
    return int(quotient) if quotient.is_integer() else quotient


def _drop_paths(visual: VitVisual, rate: float) -> None:
    blocks = visual.tower.transformer.resblocks
    for block, probability in zip(
        blocks, torch.linspace(0, rate, len(blocks), device="cpu").tolist(), strict=True
    ):
        if not (isinstance(block.ls_1, nn.Identity) and isinstance(block.ls_2, nn.Identity)):
            raise ValueError("drop_path replaces the layer scale, which this tower has")
        block.ls_1, block.ls_2 = DropPath(probability), DropPath(probability)
