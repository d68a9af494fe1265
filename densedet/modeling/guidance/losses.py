"""Direct supervision of the score map: pixels by their labels, locations by boxes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor, nn

from densedet.modeling.checks import check_choice
from densedet.modeling.pixel_loss import Mean, pixel_cross_entropy


class PixelScoreLoss(nn.Module):
    """Cross-entropy of the score map against pixel labels (DenseCLIP, arXiv 2112.01518).

    Args:
        weight: factor of the loss.
        ignore_value: label of pixels that cost nothing.
        mean: "valid" averages over the labelled pixels; "all" over all pixels, as the
            published code does.

    Raises:
        ConfigError: there is no such mean.
    """

    def __init__(self, weight: float = 0.4, ignore_value: int = 255, mean: Mean = "valid") -> None:
        super().__init__()
        check_choice("mean", mean, Mean)
        self.weight = weight
        self.ignore_value = ignore_value
        self.mean: Mean = mean

    def forward(
        self, logits: Tensor, targets: Tensor, size: tuple[int, int] | None = None
    ) -> dict[str, Tensor]:
        """Logits [B, K, h, w] and labels int64 [B, H, W] -> ``{"loss_aux": scalar}``.

        ``size`` is what `BoxScoreLoss` needs; labels have their own.
        """
        loss = pixel_cross_entropy(logits, targets, self.ignore_value, self.mean)
        return {"loss_aux": self.weight * loss}


class BoxScoreLoss(nn.Module):
    """Binary cross-entropy of the score map inside boxes (DenseCLIP, arXiv 2112.01518).

    The scores are resized bilinearly to the finest level and averaged over categories and over the
    locations that lie in any box; without such a location the loss is 0.

    Args:
        weight: factor of the loss.
        stride: pixels per cell of the finest level.
    """

    def __init__(self, weight: float = 1.0, stride: int = 4) -> None:
        super().__init__()
        self.weight = weight
        self.stride = stride

    def forward(
        self, logits: Tensor, targets: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Logits [B, K, h, w], instances of every image -> ``{"loss_aux": scalar}``.

        ``size`` is (height, width) of the finest level.
        """
        logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        classes = logits.shape[1]
        target, mask = box_targets(targets, size, self.stride, classes)
        costs = F.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
        count = (mask.sum() * classes).clamp(min=1)
        return {"loss_aux": self.weight * (costs * mask).sum() / count}


def box_targets(
    instances: Sequence[Instances], size: tuple[int, int], stride: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Rasterise boxes: which categories cover which cells.

    A box covers the cells from its truncated first to before its truncated last corner, clamped to
    the map, so a box thinner than a cell covers none and nothing covers the last row and column.

    Args:
        instances: of each image, ``gt_boxes`` in pixels and ``gt_classes``.
        size: (height, width) of the map in cells.
        stride: pixels per cell.
        num_classes: K.

    Returns:
        ``target`` bool [B, K, h, w], true where a box of the category covers the cell, and ``mask``
        bool [B, 1, h, w], true where any box does.
    """
    height, width = size
    boxes = torch.cat([image.gt_boxes.tensor for image in instances])
    labels = torch.cat([image.gt_classes for image in instances])
    counts = [len(image) for image in instances]
    batch = torch.cat([labels.new_full((n,), i) for i, n in enumerate(counts)])
    cells = (boxes / stride).long()
    x0, x1 = cells[:, 0::2].clamp(0, width - 1).unbind(1)
    y0, y1 = cells[:, 1::2].clamp(0, height - 1).unbind(1)
    covers = ((x1 > x0) & (y1 > y0)).int()
    # Boxes as signed corners; their running sums count the boxes over every cell.
    corners = covers.new_zeros(len(instances), num_classes, height, width)
    for y, x, sign in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        corners.index_put_((batch, labels, y, x), sign * covers, accumulate=True)
    target = corners.cumsum_(dim=2).cumsum_(dim=3) > 0
    return target, target.any(dim=1, keepdim=True)
