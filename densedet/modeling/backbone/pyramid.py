"""Feature pyramids over the taps of a CLIP tower.

Detectron2's `FPN` names levels by the logarithm of integer strides and its `LastLevelMaxPool`
expects a level called "p5"; a ViT with patches of 14 pixels has strides 3.5, 7, 14 and 28. The
pyramids here name levels by position and know their exact strides.
"""

from abc import abstractmethod
from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from densedet.modeling.backbone.clip_backbone import DENSE_FEATURE
from densedet.modeling.image_sizes import apart, hand_on


def resize_layers(scale: float, channels: int, norm: str) -> list[nn.Module]:
    """Layers that resize a map of a ViT by 4, 2, 1, 0.5 or 0.25, keeping its channels.

    F-ViT (CLIPSelf, arXiv 2310.01403) and DenseCLIP (arXiv 2112.01518): x4 by two transposed
    convolutions with norm and GELU between, x2 by one, x1 by nothing, less by max pooling.

    Args:
        scale: resize factor.
        channels: of the map.
        norm: Detectron2 norm name inside x4; "" for none.

    Raises:
        ValueError: another factor.
    """
    if scale == 4.0:
        return [
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
            get_norm(norm, channels) or nn.Identity(),
            nn.GELU(),
            nn.ConvTranspose2d(channels, channels, 2, stride=2),
        ]
    if scale == 2.0:
        return [nn.ConvTranspose2d(channels, channels, 2, stride=2)]
    if scale == 1.0:
        return []
    if scale in (0.5, 0.25):
        side = int(1 / scale)
        return [nn.MaxPool2d(side, stride=side)]
    raise ValueError(f"scale {scale}: a tap can be resized by 4, 2, 1, 0.5 or 0.25")


def _resizer(scale: float, channels: int, norm: str) -> nn.Module:
    layers = resize_layers(scale, channels, norm)
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class _OverBackbone(Backbone):
    """What the pyramids share: shapes by name, and the dense map handed through.

    Images of several sizes are seen apart, as in the tower, unless a batch norm is being trained.
    """

    def __init__(self, bottom_up: Backbone, coarsest_stride: float) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self._coarsest_stride = coarsest_stride
        self._shapes: dict[str, ShapeSpec] = {}
        dense = bottom_up.output_shape().get(DENSE_FEATURE)
        self._dense_shape = {DENSE_FEATURE: dense} if dense else {}

    @property
    def size_divisibility(self) -> int:
        if self._coarsest_stride % self.bottom_up.size_divisibility:
            return self.bottom_up.size_divisibility
        return int(self._coarsest_stride)

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and (possibly fractional) strides of every output."""
        return {**self._shapes, **self._dense_shape}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) -> the outputs by name, (B, C, h, w)."""
        levels = apart(self, {"images": images}, lambda inputs: self._levels(inputs["images"]))
        strides = {n: shape.stride for n, shape in self.output_shape().items() if n in levels}
        return hand_on(images, levels, strides)

    @abstractmethod
    def _levels(self, images: Tensor) -> dict[str, Tensor]:
        """As `forward`."""

    def _with_dense(self, outputs: dict[str, Tensor], taps: dict[str, Tensor]) -> dict[str, Tensor]:
        if DENSE_FEATURE in taps:
            outputs[DENSE_FEATURE] = taps[DENSE_FEATURE]
        return outputs


@BACKBONE_REGISTRY.register()
class TapPyramid(_OverBackbone):
    """Resize the taps of a ViT, all of one stride, into levels "res2", "res3", ...

    F-ViT (CLIPSelf, arXiv 2310.01403), see `resize_layers`.

    Args:
        bottom_up: `ClipBackbone` on a ViT.
        in_features: taps, from the finest level to the coarsest.
        scales: resize factor of each tap.
        norm: Detectron2 norm name inside the x4 resizer; "" for none.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        scales: Sequence[float] = (4.0, 2.0, 1.0, 0.5),
        norm: str = "SyncBN",
    ) -> None:
        if len(in_features) != len(scales):
            raise ValueError(f"{len(in_features)} taps but {len(scales)} scales")
        taps = bottom_up.output_shape()
        strides = [taps[n].stride / s for n, s in zip(in_features, scales, strict=True)]
        super().__init__(bottom_up, strides[-1])
        self.in_features = tuple(in_features)
        self.resizers = nn.ModuleList(
            _resizer(scale, taps[name].channels, norm)
            for name, scale in zip(in_features, scales, strict=True)
        )
        for level, (name, stride) in enumerate(zip(in_features, strides, strict=True), start=2):
            self._shapes[f"res{level}"] = ShapeSpec(channels=taps[name].channels, stride=stride)

    def _levels(self, images: Tensor) -> dict[str, Tensor]:
        taps = self.bottom_up(images)
        outputs = {
            level: resize(taps[name])
            for level, resize, name in zip(
                self._shapes, self.resizers, self.in_features, strict=True
            )
        }
        return self._with_dense(outputs, taps)


@BACKBONE_REGISTRY.register()
class PyramidFPN(_OverBackbone):
    """Feature pyramid network (Lin et al., arXiv 1612.03144), levels "p2", "p3", ... by position.

    Args:
        bottom_up: backbone whose features halve in size from one to the next.
        in_features: its features, from fine to coarse.
        out_channels: channels of every level.
        norm: Detectron2 norm name after each convolution; "" for a bias instead.
        extra_levels: levels added on top by subsampling the coarsest one with stride 2.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        in_features: Sequence[str],
        out_channels: int = 256,
        norm: str = "SyncBN",
        extra_levels: int = 1,
    ) -> None:
        shapes = bottom_up.output_shape()
        strides = [shapes[name].stride for name in in_features]
        if any(b != 2 * a for a, b in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"the strides must double from level to level, got {strides}")
        super().__init__(bottom_up, strides[-1])
        self.in_features = tuple(in_features)
        self.extra_levels = extra_levels
        bias = norm == ""
        self.lateral = nn.ModuleList(
            Conv2d(
                shapes[name].channels,
                out_channels,
                1,
                bias=bias,
                norm=get_norm(norm, out_channels),
            )
            for name in in_features
        )
        self.output = nn.ModuleList(
            Conv2d(
                out_channels,
                out_channels,
                3,
                padding=1,
                bias=bias,
                norm=get_norm(norm, out_channels),
            )
            for _ in in_features
        )
        for convolution in (*self.lateral, *self.output):
            weight_init.c2_xavier_fill(convolution)
        strides += [strides[-1] * 2 ** (k + 1) for k in range(extra_levels)]
        for level, stride in enumerate(strides, start=2):
            self._shapes[f"p{level}"] = ShapeSpec(channels=out_channels, stride=stride)

    def _levels(self, images: Tensor) -> dict[str, Tensor]:
        taps = self.bottom_up(images)
        merged: list[Tensor] = []
        for name, lateral in zip(self.in_features[::-1], list(self.lateral)[::-1], strict=True):
            level = lateral(taps[name])
            if merged:
                level = level + F.interpolate(merged[-1], size=level.shape[-2:], mode="nearest")
            merged.append(level)
        levels = [out(m) for out, m in zip(self.output, merged[::-1], strict=True)]
        for _ in range(self.extra_levels):
            levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return self._with_dense(dict(zip(self._shapes, levels, strict=True)), taps)
