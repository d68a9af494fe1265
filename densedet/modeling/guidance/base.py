"""The interface of language-guided prompt heads, which stand between a backbone and a neck."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from detectron2.structures import Instances
from torch import Tensor, nn

from densedet.vocabulary import Vocabulary


@dataclass
class Guided:
    """What a guidance makes of a batch of B images.

    Attributes:
        features: the levels for the neck, ``name -> [B, C, h, w]``, some with more channels than
            the trunk gave.
        scores: ``[B, K, h, w]`` cosine of every location with every category; never divided by the
            temperature.
        text: ``[B, P, E]`` embeddings of the prompted names, not normalised.
    """

    features: dict[str, Tensor]
    scores: Tensor
    text: Tensor


class Guidance(nn.Module, ABC):
    """A language-guided prompt head over the K categories of a vocabulary.

    Attributes:
        embed_dim: E, the size of the trunk's embeddings that are compared with text; None for a
            guidance that reads the levels alone.
        temperature: the cosines divided by it are logits.
    """

    embed_dim: int | None
    temperature: float

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The K categories that the scores tell apart."""

    @abstractmethod
    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Score these categories from now on; no weight changes, the number of channels may."""

    @property
    @abstractmethod
    def extra_channels(self) -> dict[str, int]:
        """The channels that `forward` adds, by level, e.g. ``{"res5": K}``."""

    @property
    def level_channels(self) -> dict[str, int]:
        """The channels that it needs of the trunk's levels; those not named may have any."""
        return {}

    @abstractmethod
    def forward(
        self, features: dict[str, Tensor], dense: Tensor | None, pooled: Tensor | None
    ) -> Guided:
        """Guide the features of a trunk.

        Args:
            features: "res2" .. "res5", each [B, C, h, w].
            dense: [B, E, h, w] embedding of every location, not normalised; None if the trunk has
                none, which is possible only where ``embed_dim`` is None.
            pooled: [B, E] embedding of the image, likewise.
        """

    @abstractmethod
    def losses(self, guided: Guided, targets: Tensor | list[Instances]) -> dict[str, Tensor]:
        """Weighted losses by name, empty if there are none.

        Args:
            guided: what `forward` returned.
            targets: int64 labels [B, H, W] of the padded images, or the instances of every image
                with ``gt_boxes`` (in pixels of the padded image) and ``gt_classes``.
        """
