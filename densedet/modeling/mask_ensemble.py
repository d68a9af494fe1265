"""Scores of segments, ensembled with the dense map of CLIP under their masks."""

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from densedet.modeling.pasting import paste_masks
from densedet.modeling.pixel_scores import PixelScores
from densedet.modeling.roi_heads import CosineClassifier, ScoreEnsemble
from densedet.regions import pool_masks

_PER_CELL = 4  # samples along a side of a cell that say how much of it a mask covers


class MaskEnsemble(ScoreEnsemble):
    """Geometric mean of a head's probabilities and those of the dense map, pooled over a mask.

    ``p^(1-a) q^a`` as in `ScoreEnsemble` (CLIPSelf, arXiv 2310.01403), with three differences: the
    dense map is averaged over the mask instead of the box, a cell with the share of it that is
    covered; q runs over the classes alone, since a segment is no background; and it comes after the
    masks, so it changes scores and not the class that the box head chose.

    Args:
        seen, unseen, temperature: as of `ScoreEnsemble`.
    """

    def forward(self, log_p: Tensor, dense: Tensor, classifier: CosineClassifier) -> Tensor:
        """Mix log-probabilities (R, K) with pooled embeddings (R, D): (R, K)."""
        log_q, exponents = self._dense_part(dense, classifier)
        return (1 - exponents) * log_p + exponents * log_q

    def _dense_part(self, dense: Tensor, classifier: CosineClassifier) -> tuple[Tensor, Tensor]:
        """Log-probabilities (R, K) of the dense map, and the exponents (K,) of the classes."""
        log_q = F.log_softmax(self.temperature * classifier.class_cosines(dense), dim=1)
        return log_q, torch.where(classifier.unseen, self.unseen, self.seen)

    def rescore(
        self, instances: Instances, dense: Tensor, stride: float, classifier: CosineClassifier
    ) -> Tensor:
        """New scores of the instances of one image.

        Args:
            instances: of R detections ``pred_boxes`` in pixels of the padded image, ``pred_masks``
                (R, 1, M, M) as the mask head gives them, ``pred_classes`` and ``scores``.
            dense: (D, h, w), the dense map of the image.
            stride: pixels per cell of it.
            classifier: has the classes of ``pred_classes``.

        Returns:
            (R,); a mask that covers no cell keeps its score.
        """
        if not len(instances):
            return instances.scores
        boxes = instances.pred_boxes.tensor * (_PER_CELL / stride)
        size = (_PER_CELL * dense.shape[1], _PER_CELL * dense.shape[2])
        pasted = paste_masks(instances.pred_masks[:, 0], boxes, size)
        cells = F.avg_pool2d(pasted.float(), _PER_CELL)
        tiny = torch.finfo(torch.float32).tiny
        log_p = instances.scores.float().clamp(min=tiny).log()[:, None]
        mixed = self(log_p, pool_masks(dense[None], [cells]), classifier)
        scores = mixed.gather(1, instances.pred_classes[:, None])[:, 0].exp()
        return torch.where(cells.flatten(1).any(dim=1), scores, instances.scores)

    def reclassify(
        self, scores: PixelScores, dense: Tensor, stride: float, classifier: CosineClassifier
    ) -> PixelScores:
        """Ensemble a semantic map, region by region: the pixels that one class wins are a region.

        Args:
            scores: logits [K, H, W], of one image without padding.
            dense: (D, h, w), the dense map of the image; its cells cover the H x W pixels.
            stride: pixels per cell of it.
            classifier: has the K classes.

        Returns:
            [K, H, W] log-probabilities, up to a constant of each pixel.
        """
        winners, region = scores.argmax().unique(return_inverse=True)
        cells = [
            _share_of_cells(region == row, (dense.shape[1], dense.shape[2]), stride)
            for row in range(len(winners))
        ]
        pooled = pool_masks(dense[None], [torch.stack(cells)])
        log_q, exponents = self._dense_part(pooled, classifier)
        return _Reclassified(scores, region, log_q, exponents)


class _Reclassified(PixelScores):
    """Logits mixed with log-probabilities [R, K] of the region [H, W] that a pixel belongs to."""

    def __init__(
        self, source: PixelScores, region: Tensor, log_q: Tensor, exponents: Tensor
    ) -> None:
        super().__init__(source.classes, source.count, source.size)
        self._source, self._region = source, region
        self._mixed, self._kept = exponents * log_q, 1 - exponents

    def block(self, rows: slice, columns: slice) -> Tensor:
        """As `PixelScores.block`."""
        log_p = self._source.block(rows, columns).log_softmax(dim=-1)
        return log_p.mul_(self._kept).add_(self._mixed[self._region[rows, columns]])


def _share_of_cells(mask: Tensor, grid: tuple[int, int], stride: float) -> Tensor:
    """How much of each cell (h, w) of a map a mask (H, W) covers."""
    return F.adaptive_avg_pool2d(_pad_to_cells(mask[None].float(), grid, stride), grid)[0]


def _pad_to_cells(masks: Tensor, grid: tuple[int, int], stride: float) -> Tensor:
    """Pad (R, H, W) by zeros at the right and the bottom to all that the cells of a map cover."""
    height, width = (round(cells * stride) for cells in grid)
    return F.pad(masks, (0, width - masks.shape[2], 0, height - masks.shape[1]))
