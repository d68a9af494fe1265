"""RetinaNet and R-CNN on a guided backbone, and what all guided models share."""

from collections.abc import Sequence
from typing import Any, Literal

from detectron2.modeling import META_ARCH_REGISTRY, Backbone, RetinaNet
from detectron2.modeling.roi_heads import ROIHeads
from torch import nn

from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.backbone.guided import GuidedBackbone, find_guided
from densedet.modeling.backbone.statistics import fill_statistics
from densedet.modeling.checks import check_choice
from densedet.modeling.pasting import PastesMasks
from densedet.vocabulary import Vocabulary

Normalizer = Literal["ema", "batch"]


def check_num_classes(vocabulary: Vocabulary, num_classes: int) -> None:
    """Raise ConfigError if a classifier is not one of these categories."""
    if len(vocabulary) != num_classes:
        raise ConfigError(
            f"the vocabulary has {len(vocabulary)} categories, the classifier num_classes="
            f"{num_classes}; give both the same number"
        )


def check_labels(trained: Vocabulary, asked: Vocabulary, holders: str, remedy: str) -> None:
    """Raise VocabularyError if weights that belong to categories are asked for other ones.

    Args:
        trained: the categories of the weights, in order.
        asked: the categories that are wanted.
        holders: what holds the weights.
        remedy: what follows a new vocabulary nevertheless.
    """
    different = trained.first_difference(asked)
    if different is None:
        return
    index, own, new = different
    raise VocabularyError(
        f"category {index + 1} of {len(trained)} is {own}, not {new}: {holders} a channel "
        f"for each category in its order, so that another vocabulary needs retraining; {remedy}"
    )


class GuidedDetector(nn.Module):
    """Puts the losses of the guidance beside those of a Detectron2 model; the first base class.

    Args:
        backbone: with a `GuidedBackbone` in it.
        pixel_mean, pixel_std: of RGB in 0..255; None takes the statistics that belong to the
            weights of the backbone.
        **kwargs: of the Detectron2 model.

    Raises:
        ConfigError: no guidance in the backbone.
    """

    backbone: Backbone

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
        self._vocabulary = self.guided.guidance.vocabulary

    @property
    def guided(self) -> GuidedBackbone:
        """The guided backbone, for its score map or its vocabulary."""
        guided = find_guided(self.backbone)
        if guided is None:
            raise ConfigError(
                f"{type(self).__name__} needs a GuidedBackbone in its backbone; without guidance "
                "take Detectron2's own model"
            )
        return guided

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes that results refer to: ``pred_classes`` are indices into it."""
        return self._vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Accept the labels of the training, in its order; synonyms may be others.

        Raises:
            VocabularyError: other labels, for which the model needs retraining.
        """
        self._check(vocabulary)
        if vocabulary != self.guided.guidance.vocabulary:
            self.guided.guidance.set_vocabulary(vocabulary)
        self._vocabulary = vocabulary

    def _check(self, vocabulary: Vocabulary) -> None:
        check_labels(
            self._vocabulary,
            vocabulary,
            "the FPN and the classifier hold",
            "guided.guidance.set_vocabulary changes the score map alone, which guided.guide gives",
        )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As the Detectron2 model, with the losses of the guidance in training.

        Raises:
            VocabularyError: the guidance was given other labels than those of the training.
        """
        guided = self.guided
        self._check(guided.guidance.vocabulary)
        if not self.training:
            return super().forward(batched_inputs)
        with guided.recording() as record:
            losses = super().forward(batched_inputs)
        device = record[0].scores.device
        instances = [x["instances"].to(device) for x in batched_inputs]
        return losses | guided.guidance.losses(record[0], instances)


@META_ARCH_REGISTRY.register()
class GuidedRetinaNet(GuidedDetector, RetinaNet):
    """`RetinaNet` on a guided backbone (DenseCLIP, arXiv 2112.01518).

    Args:
        loss_normalizer: the losses are divided by the number of positive anchors: its moving
            average ("ema", Detectron2's) or that of the batch ("batch", as
            DenseCLIP's published code has it).
        **kwargs: as of `GuidedDetector` and `RetinaNet`.

    Raises:
        ConfigError: an unknown ``loss_normalizer``, no guidance, or ``num_classes`` that is not
            the size of its vocabulary.
    """

    num_classes: int

    def __init__(self, *, loss_normalizer: Normalizer = "ema", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_choice("loss_normalizer", loss_normalizer, Normalizer)
        check_num_classes(self.vocabulary, self.num_classes)
        # `loss_normalizer` is where RetinaNet keeps the average itself
        self.normalizer = loss_normalizer

    def _ema_update(self, name: str, value: float, *args: Any, **kwargs: Any) -> float:
        if self.normalizer == "batch":
            return value
        return super()._ema_update(name, value, *args, **kwargs)


@META_ARCH_REGISTRY.register()
class GuidedRCNN(GuidedDetector, PastesMasks):
    """`GeneralizedRCNN` on a guided backbone (DenseCLIP, arXiv 2112.01518).

    Args:
        **kwargs: as of `GuidedDetector` and `GeneralizedRCNN`.

    Raises:
        ConfigError: no guidance, or ``roi_heads.num_classes`` that is not the size of its
            vocabulary.
    """

    roi_heads: ROIHeads

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_num_classes(self.vocabulary, self.roi_heads.num_classes)
