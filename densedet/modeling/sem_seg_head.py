"""The head of Semantic FPN with dropout and a choice of the loss's mean."""

from functools import reduce
from operator import add
from typing import Any

from detectron2.modeling.meta_arch.semantic_seg import SEM_SEG_HEADS_REGISTRY, SemSegFPNHead
from torch import Tensor, nn

from densedet.modeling.checks import check_choice
from densedet.modeling.image_sizes import apart
from densedet.modeling.pixel_loss import Mean, pixel_cross_entropy


@SEM_SEG_HEADS_REGISTRY.register()
class SegmentationHead(SemSegFPNHead):
    """`SemSegFPNHead` as DenseCLIP (arXiv 2112.01518) uses it.

    Args:
        dropout: probability that a channel is zeroed before the classifier, in training.
        mean: the loss is averaged over the "valid" pixels, as Detectron2 does; or over "all",
            ignored ones included, as the published code of DenseCLIP does.
        ignore_value: label of pixels that cost nothing.
        **kwargs: as of `SemSegFPNHead`.

    Raises:
        ConfigError: there is no such mean.
    """

    def __init__(
        self, *, dropout: float = 0.1, mean: Mean = "valid", ignore_value: int = 255, **kwargs: Any
    ) -> None:
        super().__init__(ignore_value=ignore_value, **kwargs)
        check_choice("mean", mean, Mean)
        self.dropout = nn.Dropout2d(dropout)
        self.mean: Mean = mean

    def layers(self, features: dict[str, Tensor]) -> Tensor:
        """Levels ``[B, C, h, w]`` to logits ``[B, K, H, W]`` at the common stride.

        Images of several sizes are seen apart, see `densedet.modeling.image_sizes`; the logits are
        0 in the padding.
        """
        levels = {name: features[name] for name in self.in_features}
        return apart(self, levels, self._logits)["logits"]

    def _logits(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        levels = zip(self.scale_heads, self.in_features, strict=True)
        summed = reduce(add, (head(features[name]) for head, name in levels))
        return {"logits": self.predictor(self.dropout(summed))}

    def losses(self, predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of logits, resized bilinearly to the labels.

        Args:
            predictions: ``[B, K, h, w]``.
            targets: ``[B, H, W]`` int64 in 0..K-1, or ``ignore_value``.

        Returns:
            ``{"loss_sem_seg": scalar}``, 0 if no pixel is valid.
        """
        loss = pixel_cross_entropy(predictions, targets, self.ignore_value, self.mean)
        return {"loss_sem_seg": self.loss_weight * loss}
