"""RoIAlign over pyramid levels of any stride."""

from collections.abc import Sequence

import torch
from detectron2.layers import ROIAlign, cat
from detectron2.modeling.poolers import convert_boxes_to_pooler_format
from detectron2.structures import Boxes
from torch import Tensor, nn


class StridePooler(nn.Module):
    """Detectron2's `ROIPooler` for strides that are not powers of two, such as 3.5 to 28.

    A box of area A goes to level ``clamp(floor(log2(sqrt(A) / base_size + 1e-6)), 0, levels - 1)``
    whatever the strides are (F-ViT: CLIPSelf, arXiv 2310.01403; the base is 56 pixels).

    Args:
        output_size: side of the pooled grid.
        strides: of the levels, in image pixels.
        base_size: side in pixels of a box at the lower end of level 0.
        sampling_ratio: samples per bin and axis; 0 adapts to the box.
    """

    def __init__(
        self,
        output_size: int,
        strides: Sequence[float],
        base_size: float = 56.0,
        sampling_ratio: int = 0,
    ) -> None:
        super().__init__()
        self.output_size = (output_size, output_size)
        self.base_size = base_size
        self.level_poolers = nn.ModuleList(
            ROIAlign(self.output_size, 1.0 / stride, sampling_ratio, aligned=True)
            for stride in strides
        )

    def assign_levels(self, box_lists: list[Boxes]) -> Tensor:
        """Level index of every box, (M,) int64."""
        sides = cat([boxes.area() for boxes in box_lists]).sqrt()
        levels = torch.floor(torch.log2(sides / self.base_size + 1e-6))
        return levels.clamp(0, len(self.level_poolers) - 1).to(torch.int64)

    def forward(self, features: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """Pool the boxes of every image.

        Args:
            features: one (N, C, h, w) map a level.
            box_lists: N sets of boxes in image pixels.

        Returns:
            (M, C, output_size, output_size) for the M boxes of all images, in the dtype of
            ``features[0]``.

        Raises:
            ValueError: there are more or fewer maps than levels.
        """
        if len(features) != len(self.level_poolers):
            raise ValueError(f"{len(features)} feature maps for {len(self.level_poolers)} strides")
        rois = convert_boxes_to_pooler_format(box_lists)
        pooled = features[0].new_zeros(len(rois), features[0].shape[1], *self.output_size)
        if not len(rois):
            return pooled
        levels = self.assign_levels(box_lists)
        for index, pooler in enumerate(self.level_poolers):
            chosen = torch.nonzero(levels == index)[:, 0]
            # in fp32: `ROIAlign` casts boxes to the dtype of the map, which moves them by up to a
            # pixel in fp16 and by several in bf16
            values = pooler(features[index].float(), rois[chosen].float())
            pooled.index_put_((chosen,), values.to(pooled.dtype))
        return pooled
