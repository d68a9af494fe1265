"""A trunk with language guidance on its features, as one backbone."""

from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.modeling.backbone.aligned import DENSE_EMBEDDING, POOLED_EMBEDDING
from densedet.modeling.guidance.base import Guidance, Guided


@BACKBONE_REGISTRY.register()
class GuidedBackbone(Backbone):
    """The levels of a trunk after guidance, for a neck such as Detectron2's `FPN`.

    Args:
        trunk: gives "res2" .. "res5" and, with an ``embed_dim``, the embeddings of
            `AlignedBackbone`.
        guidance: changes the levels; its vocabulary decides their channels.

    Raises:
        ConfigError: the trunk has no embeddings, or those of another size than the guidance
            compares; or the guidance needs a level that the trunk does not have, or has with other
            channels.
    """

    def __init__(self, trunk: Backbone, guidance: Guidance) -> None:
        super().__init__()
        _check(trunk, guidance)
        self.trunk = trunk
        self.guidance = guidance
        self._record: list[Guided] | None = None

    @property
    def size_divisibility(self) -> int:
        return self.trunk.size_divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.trunk.padding_constraints

    def output_shape(self) -> dict[str, ShapeSpec]:
        """The trunk's, with the channels that the guidance adds for its present vocabulary."""
        extra = self.guidance.extra_channels
        return {
            name: ShapeSpec(channels=shape.channels + extra.get(name, 0), stride=shape.stride)
            for name, shape in self.trunk.output_shape().items()
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] -> guided levels [B, C, h, w] by name."""
        guided = self.guide(images)
        if self._record is not None:
            self._record.append(guided)
        return guided.features

    def guide(self, images: Tensor) -> Guided:
        """Guided levels, scores and text of normalised images [B, 3, H, W]."""
        features = dict(self.trunk(images))
        dense = features.pop(DENSE_EMBEDDING, None)
        pooled = features.pop(POOLED_EMBEDDING, None)
        return self.guidance(features, dense, pooled)

    @contextmanager
    def recording(self) -> Iterator[list[Guided]]:
        """Collect what `forward` computes meanwhile.

        A meta-architecture reaches the scores so, although Detectron2's forward passes only hand
        the levels on.
        """
        outer, self._record = self._record, []
        try:
            yield self._record
        finally:
            self._record = outer


def find_guided(backbone: nn.Module) -> GuidedBackbone | None:
    """The guided backbone in a module, e.g. below an FPN; None if there is none."""
    return next((m for m in backbone.modules() if isinstance(m, GuidedBackbone)), None)


def _check(trunk: Backbone, guidance: Guidance) -> None:
    needed, found = guidance.embed_dim, getattr(trunk, "embed_dim", None)
    names = f"{type(guidance).__name__} on {type(trunk).__name__}"
    if needed is not None and found is None:
        raise ConfigError(f"{names}: the trunk gives no embeddings; build it with aligned=True")
    if needed is not None and needed != found:
        raise ConfigError(
            f"{names}: the trunk embeds in {found} dimensions, the guidance in {needed}; "
            "take trunk and text tower of one CLIP, or set embed_dim"
        )
    levels = trunk.output_shape()
    wanted = guidance.level_channels
    missing = [name for name in {**wanted, **guidance.extra_channels} if name not in levels]
    if missing:
        raise ConfigError(f"{names}: no levels {missing}; the trunk has {', '.join(levels)}")
    for name, channels in wanted.items():
        if levels[name].channels != channels:
            raise ConfigError(
                f"{names}: the guidance is built for {channels} channels of {name}, the trunk has "
                f"{levels[name].channels}; give the guidance those of the trunk"
            )
