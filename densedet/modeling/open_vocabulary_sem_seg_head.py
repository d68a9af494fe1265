"""A semantic head that embeds pixels and compares them with class embeddings."""

from typing import Any

import torch
from detectron2.modeling.meta_arch.semantic_seg import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from densedet.clip import ClassEmbeddings
from densedet.errors import ConfigError
from densedet.modeling.roi_heads import CosineClassifier
from densedet.modeling.sem_seg_head import SegmentationHead

_NEVER = -1e4  # a logit whose probability is 0; infinity would become NaN in the interpolation


@SEM_SEG_HEADS_REGISTRY.register()
class OpenVocabularySegmentationHead(SegmentationHead):
    """Semantic FPN (arXiv 1901.02446) whose last convolution gives E channels, not K classes.

    A pixel's logit for a class is the temperature times the cosine of its embedding with the class
    embedding, as in the box head of F-ViT (CLIPSelf, arXiv 2310.01403); so the classes can be
    replaced at any time. In training the classes without labels take no part: they are left out of
    the softmax, and pixels that have their label count as ignored.

    Args:
        classifier: compares embeddings with classes; without a learned background, since every
            pixel belongs to a class.
        **kwargs: as of `SegmentationHead`, without ``num_classes``.

    Raises:
        ConfigError: the classifier learns a background vector.
    """

    def __init__(self, *, classifier: CosineClassifier, **kwargs: Any) -> None:
        if classifier.learned_background is not None:
            raise ConfigError(
                "sem_seg_head.classifier: a semantic head has no background class; set "
                'background="text"'
            )
        super().__init__(num_classes=classifier.embed_dim, **kwargs)
        self.classifier = classifier

    def set_classes(self, embeddings: ClassEmbeddings, seen: tuple[bool, ...]) -> None:
        """Replace the classes; see `CosineClassifier.set_classes`."""
        self.classifier.set_classes(embeddings, seen)

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Levels ``[B, C, h, w]`` to fp32 logits ``[B, K, H, W]`` at the common stride."""
        cosines = self.classifier.pixel_cosines(super().layers(features))
        return self.classifier.temperature * cosines

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """As `SegmentationHead.losses`, over the seen classes and the pixels labelled as such.

        Raises:
            ConfigError: the ignored label is the index of a class.
        """
        unseen = self.classifier.unseen
        if 0 <= self.ignore_value < len(unseen):
            raise ConfigError(
                f"sem_seg_head.ignore_value={self.ignore_value} is the label of one of the "
                f"{len(unseen)} categories; give one from {len(unseen)} on, as to the mapper"
            )
        predictions = predictions.masked_fill(unseen[:, None, None], _NEVER)
        unlabelled = torch.isin(targets, unseen.nonzero()[:, 0])
        return super().losses(predictions, targets.masked_fill(unlabelled, self.ignore_value))
