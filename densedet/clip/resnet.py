"""OpenAI CLIP ResNets: open_clip's ``ModifiedResNet``."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torchvision.ops import roi_align

from densedet.clip.position import resample_positions
from densedet.clip.visual import ClipVisual, VisualFeatures

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
_STRIDES = (4, 4, 8, 16, 32)


class ResNetVisual(ClipVisual):
    """CLIP ResNet as dense encoder; see :class:`densedet.clip.visual.ClipVisual`.

    Taps are ``stem`` (stride 4) and ``layer1`` .. ``layer4`` (4, 8, 16, 32). The dense map is the
    attention pool without attention: position, value and output projection at every location.
    """

    tower: ModifiedResNet

    def __init__(self, tower: ModifiedResNet) -> None:
        """Wrap an open_clip ``ModifiedResNet``."""
        stages = [tower.layer1, tower.layer2, tower.layer3, tower.layer4]
        channels = [tower.conv3.out_channels, *(stage[-1].bn3.num_features for stage in stages)]
        super().__init__(
            tower,
            stride=_STRIDES[-1],
            embed_dim=tower.attnpool.c_proj.out_features,
            tap_channels=dict(zip(_STAGES, channels, strict=True)),
            tap_strides=dict(zip(_STAGES, _STRIDES, strict=True)),
        )

    def _encode(
        self, images: Tensor, taps: frozenset[str], dense: bool, pooled: bool
    ) -> VisualFeatures:
        features = VisualFeatures()
        needed = len(_STAGES) if dense or pooled else 1 + max(map(_STAGES.index, taps), default=-1)
        maps = images
        for name in _STAGES[:needed]:
            maps = self._run_stage(getattr(self.tower, name), maps)
            if name in taps:
                features.taps[name] = maps
        if dense or pooled:
            self._pool(maps, features, dense, pooled)
        return features

    def _run_stage(self, stage: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
        if not (self.checkpointing and isinstance(stage, nn.Sequential)):
            return stage(maps)
        for bottleneck in stage:
            maps = self._checkpointed(bottleneck, maps)
        return maps

    def attend_boxes(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Embed boxes by the attention pool: RoIAlign of layer4 to the native grid, then the pool.

        Called ``v1`` in CLIPSelf (arXiv 2310.01403).

        Args:
            images: ``[B, 3, H, W]``, normalised.
            boxes: for each image ``[K_i, 4]``, (x0, y0, x1, y1) in image pixels.

        Returns:
            ``[K, D]`` image by image, not normalised.
        """
        maps = self(images, taps=["layer4"], dense=False, pooled=False).taps["layer4"]
        side = math.isqrt(self.tower.attnpool.positional_embedding.shape[0] - 1)
        corners = [b.to(maps) for b in boxes]
        regions = roi_align(maps, corners, side, 1.0 / self.stride, -1, aligned=True)
        features = VisualFeatures()
        self._pool(regions, features, dense=False, pooled=True)
        assert features.pooled is not None
        return features.pooled

    def _pool(self, maps: Tensor, features: VisualFeatures, dense: bool, pooled: bool) -> None:
        pool = self.tower.attnpool
        grid = (maps.shape[2], maps.shape[3])
        tokens = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + resample_positions(pool.positional_embedding, grid).to(tokens.dtype)
        values = pool.v_proj(tokens)
        if dense:
            unit = F.normalize(pool.c_proj(values[:, 1:]), dim=-1)
            features.dense = unit.transpose(1, 2).unflatten(2, grid)
        if pooled:
            query, key, value = (
                x.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
                for x in (pool.q_proj(tokens[:, :1]), pool.k_proj(tokens), values)
            )
            mixed = F.scaled_dot_product_attention(query, key, value)
            features.pooled = pool.c_proj(mixed.transpose(1, 2).flatten(2))[:, 0]
