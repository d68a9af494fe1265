"""OpenAI CLIP ResNets: open_clip's ``ModifiedResNet``."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torchvision.ops import roi_align

from densedet.clip.attention_pool import attend, attend_all, pool_tokens
from densedet.clip.position import PositionMode, resample_positions
from densedet.clip.visual import ClipVisual, VisualFeatures, image_size

_STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
_STRIDES = (4, 4, 8, 16, 32)


class ResNetVisual(ClipVisual):
    """CLIP ResNet as dense encoder; see :class:`densedet.clip.visual.ClipVisual`.

    Taps are ``stem`` (stride 4) and ``layer1`` .. ``layer4`` (4, 8, 16, 32). The dense map is the
    attention pool without attention: position, value and output projection at every location.

    Attributes:
        positions: how the pool's position table comes to the size of an image.
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
        self.positions: PositionMode = "bicubic"

    def _encode(
        self, images: Tensor, taps: frozenset[str], dense: bool, pooled: bool
    ) -> VisualFeatures:
        features = VisualFeatures()
        maps = self._run_stages(images, dense or pooled, taps, features)
        if dense or pooled:
            self._pool(maps, features, dense, pooled)
        return features

    def _embed_locations(self, images: Tensor, taps: frozenset[str]) -> VisualFeatures:
        size = image_size(images)
        if min(size) < self.stride:
            raise ValueError(
                f"an image of {size[0]}x{size[1]} (HxW) is smaller than the tower's stride of "
                f"{self.stride}: pad it to at least that"
            )
        features = VisualFeatures()
        maps = self._run_stages(images, self.embeds, taps, features)
        if self.embeds:
            pool = self.tower.attnpool
            features.pooled, features.dense = attend_all(pool, maps, self.positions)
        return features

    def drop_embedding(self) -> None:
        """See :meth:`densedet.clip.visual.ClipVisual.drop_embedding`: the attention pool."""
        self.tower.attnpool = None
        self.embeds = False

    def resize_positions(self, grid: int) -> None:
        """See :meth:`densedet.clip.visual.ClipVisual.resize_positions`."""
        self._require_embedding()
        pool = self.tower.attnpool
        table = pool.positional_embedding
        resized = resample_positions(table.detach(), (grid, grid), mode="bilinear")
        pool.positional_embedding = nn.Parameter(resized, requires_grad=table.requires_grad)
        self.image_size = (grid * self.stride, grid * self.stride)

    def _run_stages(
        self, images: Tensor, every: bool, taps: frozenset[str], features: VisualFeatures
    ) -> Tensor:
        """The output of the last stage needed (``every``: of layer4); taps go to ``features``."""
        needed = len(_STAGES) if every else 1 + max(map(_STAGES.index, taps), default=-1)
        maps = images
        for name in _STAGES[:needed]:
            maps = self._run_stage(getattr(self.tower, name), maps)
            if name in taps:
                features.taps[name] = maps
        return maps

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
        self._require_embedding()
        maps = self(images, taps=["layer4"], dense=False, pooled=False).taps["layer4"]
        side = math.isqrt(self.tower.attnpool.positional_embedding.shape[0] - 1)
        corners = [b.to(maps.device, torch.float32) for b in boxes]  # bf16 would move them
        regions = roi_align(maps.float(), corners, side, 1.0 / self.stride, -1, aligned=True)
        features = VisualFeatures()
        self._pool(regions.to(maps), features, dense=False, pooled=True)
        assert features.pooled is not None
        return features.pooled

    def _pool(self, maps: Tensor, features: VisualFeatures, dense: bool, pooled: bool) -> None:
        self._require_embedding()
        pool = self.tower.attnpool
        tokens = pool_tokens(pool, maps, self.positions)
        values = pool.v_proj(tokens)
        if dense:
            unit = F.normalize(pool.c_proj(values[:, 1:]), dim=-1)
            features.dense = unit.transpose(1, 2).unflatten(2, maps.shape[2:])
        if pooled:
            features.pooled = attend(pool, tokens[:, :1], tokens, values)[:, 0]
