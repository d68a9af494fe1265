"""A CLIP image tower as a Detectron2 backbone."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor

from densedet.clip import ClipVisual
from densedet.modeling.image_sizes import apart
from densedet.modeling.weight_state import weight_state

DENSE_FEATURE = "vlm"


@BACKBONE_REGISTRY.register()
class ClipBackbone(Backbone):
    """Taps of a CLIP tower and, in evaluation, its dense map of embeddings.

    The dense map (``"vlm"``, unit norm, D channels) is what region scores are ensembled with at
    test time (CLIPSelf, arXiv 2310.01403, F-ViT detector); training does not compute it.

    The features of an image do not depend on its neighbours in the batch: images of several sizes
    go through the tower by size, see `densedet.modeling.image_sizes`, and the maps are zero in the
    padding.

    Args:
        visual: the tower.
        out_features: names of taps, see `ClipVisual`.
        dense: give the dense map in evaluation; False where nothing reads it.
        frozen: keep the tower in eval mode and run it without gradient.
        square_size: pad every batch to squares of this side in pixels; 0 pads to the next
            multiple of the stride.
        cache_size: keep the features of this many images in evaluation (frozen towers only), so
            that another vocabulary or threshold on the same images costs no second pass. Images
            are recognised by their content; other weights or another precision clear the cache.
    """

    def __init__(
        self,
        visual: ClipVisual,
        out_features: Sequence[str],
        dense: bool = True,
        frozen: bool = True,
        square_size: int = 0,
        cache_size: int = 0,
    ) -> None:
        super().__init__()
        unknown = [name for name in out_features if name not in visual.tap_channels]
        if unknown:
            raise ValueError(f"no taps {unknown}; there are {list(visual.tap_channels)}")
        if cache_size and not frozen:
            raise ValueError("features can be cached only if the tower is frozen")
        self.visual = visual
        self.dense = dense
        self.frozen = frozen
        self.square_size = square_size
        self.cache_size = cache_size
        self._cache: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()
        self._cached_of: tuple[Any, ...] = ()
        self._out_features = list(out_features)
        self._out_feature_channels = {n: visual.tap_channels[n] for n in out_features}
        self._out_feature_strides = {n: visual.tap_strides[n] for n in out_features}
        if dense:
            self._out_feature_channels[DENSE_FEATURE] = visual.embed_dim
            self._out_feature_strides[DENSE_FEATURE] = visual.stride
        if frozen:
            visual.requires_grad_(False)
            visual.eval()

    def train(self, mode: bool = True) -> "ClipBackbone":
        """Set the mode; a frozen tower stays in eval mode. Training clears the cache."""
        super().train(mode)
        if self.frozen:
            self.visual.eval()
        if mode:
            self._cache.clear()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ClipBackbone":
        self._cache.clear()  # features on another device or of another dtype
        return super()._apply(fn, recurse)

    @property
    def size_divisibility(self) -> int:
        return self.visual.stride

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self.square_size}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and strides of the taps and of the dense map."""
        return {
            name: ShapeSpec(channels=channels, stride=self._out_feature_strides[name])
            for name, channels in self._out_feature_channels.items()
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) -> taps (B, C, h, w); in evaluation also ``"vlm"``."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return apart(self, {"images": images}, self._encode)

    def _encode(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        cached = self.cache_size and not self.training
        return (self._cached_features if cached else self._features)(inputs["images"])

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        dense = self.dense and not self.training
        found = self.visual(images, taps=self._out_features, dense=dense, pooled=False)
        features = dict(found.taps)
        if dense:
            features[DENSE_FEATURE] = found.dense
        return features

    def _cached_features(self, images: Tensor) -> dict[str, Tensor]:
        state = (_autocast_dtype(images.device), weight_state(self.visual))
        if state != self._cached_of:
            self._cache.clear()
            self._cached_of = state
        keys = [content_key(image) for image in images]
        missing = [i for i, key in enumerate(keys) if key not in self._cache]
        if missing:
            computed = self._features(images[missing])
            for row, i in enumerate(missing):
                self._cache[keys[i]] = {n: f[row : row + 1].clone() for n, f in computed.items()}
        for key in keys:
            self._cache.move_to_end(key)
        found = [self._cache[key] for key in keys]
        while len(self._cache) > self.cache_size:
            self._cache.popitem(last=False)
        return {name: torch.cat([f[name] for f in found]) for name in found[0]}


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def content_key(image: Tensor) -> bytes:
    """A digest of a tensor's shape, dtype and values."""
    data = image.detach().cpu().contiguous()
    digest = hashlib.blake2b(str((tuple(data.shape), data.dtype)).encode(), digest_size=16)
    digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.digest()
