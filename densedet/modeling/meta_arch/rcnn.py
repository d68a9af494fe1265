"""Open-vocabulary Faster and Mask R-CNN."""

import logging
from collections.abc import Sequence
from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY, Backbone, GeneralizedRCNN, RetinaNet
from detectron2.structures import ImageList, Instances
from torch import nn

from densedet.clip import ClassEmbeddings
from densedet.errors import ConfigError
from densedet.modeling.backbone import ClipBackbone
from densedet.modeling.backbone.statistics import fill_statistics
from densedet.modeling.image_sizes import ImagesApart
from densedet.modeling.meta_arch.open_vocabulary import OpenVocabularyModel
from densedet.modeling.pasting import PastesMasks
from densedet.modeling.roi_heads import OpenVocabularyROIHeads

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class ClosedSetRCNN(ImagesApart, PastesMasks):
    """`GeneralizedRCNN` on a `ClipBackbone`: images of several sizes are seen apart."""


@META_ARCH_REGISTRY.register()
class OpenVocabularyRCNN(OpenVocabularyModel, ImagesApart, PastesMasks):
    """`GeneralizedRCNN` whose classes are a vocabulary, replaceable at any time.

    ``pred_classes`` and, in training, ``gt_classes`` are indices into the vocabulary.

    Args:
        backbone: levels for the heads.
        pixel_mean, pixel_std: of RGB in 0..255; None takes the statistics that belong to the CLIP
            weights of the backbone.
        **kwargs: as of `OpenVocabularyModel` and `GeneralizedRCNN`; ``roi_heads`` is an
            `OpenVocabularyROIHeads`.
    """

    backbone: Backbone
    roi_heads: OpenVocabularyROIHeads

    def __init__(
        self,
        *,
        backbone: Backbone,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        mean, std = fill_statistics(backbone, pixel_mean, pixel_std)
        super().__init__(backbone=backbone, pixel_mean=mean, pixel_std=std, **kwargs)

    def set_classes(self, embeddings: ClassEmbeddings) -> None:
        """Hand the embeddings of the vocabulary to the box predictor."""
        self.roi_heads.set_classes(embeddings, self.vocabulary.seen)

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """As `GeneralizedRCNN.preprocess_image`.

        Raises:
            ConfigError: an image is larger than the square it is to be padded to; Detectron2
                would cut it off.
        """
        side = self.backbone.padding_constraints.get("square_size", 0)
        for image_input in batched_inputs:
            height, width = image_input["image"].shape[-2:]
            if side and max(height, width) > side:
                raise ConfigError(
                    f"{image_input.get('file_name', 'an image')} has {height}x{width} (HxW) pixels "
                    f"after the augmentations, more than the square_size {side} of the backbone: "
                    "resize its longest side to that, or set square_size to 0"
                )
        return super().preprocess_image(batched_inputs)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As `GeneralizedRCNN.forward`; embeds the vocabulary first if it is new."""
        self._embed_vocabulary()
        return super().forward(batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """As `GeneralizedRCNN.inference`; embeds the vocabulary first if it is new."""
        self._embed_vocabulary()
        return super().inference(batched_inputs, detected_instances, do_postprocess)


def warn_of_padding(model: nn.Module) -> None:
    """Say where a model of Detectron2's own lets a CLIP tower see the padding of a batch."""
    towers = [m for m in model.modules() if isinstance(m, ClipBackbone) and not m.square_size]
    plain = isinstance(model, GeneralizedRCNN | RetinaNet) and not isinstance(model, ImagesApart)
    if towers and plain:
        logger.warning(
            "%s pads the images of a batch to the largest, and the image tower sees the padding: "
            "an image has other features in training than alone. Take "
            "densedet.modeling.meta_arch.ClosedSetRCNN, put ImagesApart before the class, or set "
            "square_size of the ClipBackbone",
            type(model).__name__,
        )
