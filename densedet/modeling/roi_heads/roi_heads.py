"""ROI heads that classify by comparison with class embeddings."""

from typing import Any

import torch
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor

from densedet.clip import ClassEmbeddings
from densedet.modeling.backbone import DENSE_FEATURE
from densedet.regions import pool_boxes


@ROI_HEADS_REGISTRY.register()
class OpenVocabularyROIHeads(StandardROIHeads):
    """`StandardROIHeads` whose box predictor also sees the dense map at test time.

    The dense embedding of a region is pooled over its *proposal* box, not over the regressed one
    (F-ViT: CLIPSelf, arXiv 2310.01403).

    Args:
        dense_stride: pixels per cell of the dense map.
        **kwargs: as of `StandardROIHeads`, without ``num_classes``; ``box_predictor`` is an
            `OpenVocabularyBoxPredictor` and masks are class-agnostic.
    """

    def __init__(self, *, dense_stride: float, **kwargs: Any) -> None:
        super().__init__(num_classes=1, **kwargs)
        self.dense_stride = dense_stride

    def set_classes(self, embeddings: ClassEmbeddings, seen: tuple[bool, ...]) -> None:
        """Replace the classes; see `CosineClassifier.set_classes`."""
        self.box_predictor.set_classes(embeddings, seen)
        self.num_classes = len(seen)

    def _forward_mask(self, features: dict[str, Tensor], instances: list[Instances]) -> Any:
        if self.training and self.mask_on and not _have_foreground(instances, self.num_classes):
            return self._no_mask_loss(features)
        return super()._forward_mask(features, instances)

    def _no_mask_loss(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """A loss of zero that still runs the mask head, on a corner of the first image.

        `SyncBN` of Detectron2 refuses an empty batch, and every process must take part in it.
        """
        maps = [features[f] for f in self.mask_in_features]
        corner = maps[0].new_tensor([[0.0, 0.0, 16.0, 16.0]], dtype=torch.float32)
        boxes = [Boxes(corner[: int(i == 0)]) for i in range(len(maps[0]))]
        regions = self.mask_pooler(maps, boxes)
        return {"loss_mask": self.mask_head.layers(regions).sum() * 0.0}

    def _forward_box(self, features: dict[str, Tensor], proposals: list[Instances]) -> Any:
        if self.training or self.box_predictor.ensemble is None:
            return super()._forward_box(features, proposals)
        boxes = [p.proposal_boxes for p in proposals]
        pooled = self.box_pooler([features[f] for f in self.box_in_features], boxes)
        dense = pool_boxes(features[DENSE_FEATURE], [b.tensor for b in boxes], self.dense_stride)
        predictions = self.box_predictor(self.box_head(pooled), dense)
        instances, _ = self.box_predictor.inference(predictions, proposals)
        return instances


def _have_foreground(proposals: list[Instances], num_classes: int) -> bool:
    return any(bool((p.gt_classes < num_classes).any()) for p in proposals)
