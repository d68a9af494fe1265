"""Open-vocabulary R-CNN as one graph of fixed sizes, and the last step after it.

What torch cannot export is left out or replaced by an equal of fixed size:

- The anchors belong to one size of pictures and are constants.
- The proposals are always R, `post_nms_topk`; where there are fewer, the rest scores 0.
- `StridePooler` sorts regions by level, so every level has another number of them: here every
  region is pooled from every level, and its own is taken.
- The number of detections depends on the picture, the final suppression too. It is
  `select_detections`, after the graph, with masks for all R regions in it.
- One picture at a time: suppression has no batch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import nms, roi_align

from densedet.errors import ConfigError
from densedet.export.part import ExportPart, Size, left_out, padded_square
from densedet.modeling.backbone import DENSE_FEATURE
from densedet.modeling.meta_arch import OpenVocabularyPanopticFPN, OpenVocabularyRCNN
from densedet.modeling.pasting import postprocess
from densedet.modeling.roi_heads import StridePooler


class DetectorPart(ExportPart):
    """From a picture to R scored regions, before the final suppression.

    Args:
        model: its vocabulary is embedded; of an `OpenVocabularyPanopticFPN` the things are found.
        size: (H, W) of the pictures. Of a backbone that pads to squares it is that square; smaller
            pictures are padded with ``pixel_mean`` at the right and the bottom.

    Raises:
        ConfigError: another size than the square, or poolers other than `StridePooler`.
    """

    kind = "detector"
    outputs = {
        "boxes": "[R, 4], x0, y0, x1, y1 in pixels, inside the picture",
        "scores": "[R, K], probability of each category; 0 for regions that are none",
    }
    any_batch = False

    def __init__(self, model: OpenVocabularyRCNN, size: Size) -> None:
        words = model.vocabulary
        if isinstance(model, OpenVocabularyPanopticFPN):
            words = words.of_kind("thing")
        multiple = model.backbone.size_divisibility or 1
        mean, std = model.get_buffer("pixel_mean"), model.get_buffer("pixel_std")
        super().__init__(words, mean, std, multiple)
        self.size = padded_square(model.backbone) or size
        self.check_size(size)
        self.left_out = left_out(model)
        self.backbone = model.backbone
        self.rpn: Any
        self.roi_heads: Any
        self.rpn, self.roi_heads = model.proposal_generator, model.roi_heads
        self.regions = int(self.rpn.post_nms_topk[False])
        self.has_masks = bool(model.roi_heads.mask_on)
        if self.has_masks:
            masks = "[R, M, M], probability of the mask inside each box"
            self.outputs = {**type(self).outputs, "masks": masks}
        self.box_pooler = EveryLevelPooler(self.roi_heads.box_pooler)
        self.mask_pooler = EveryLevelPooler(self.roi_heads.mask_pooler) if self.has_masks else None
        self._add_anchors()

    def _add_anchors(self) -> None:
        with torch.no_grad():
            blank = torch.zeros(1, 3, *(self.size or ()), device=self.pixel_mean.device)
            features = self.backbone(blank)
            levels = self.rpn.anchor_generator([features[n] for n in self.rpn.in_features])
        self.anchors = [f"anchors_{i}" for i in range(len(levels))]
        for name, boxes in zip(self.anchors, levels, strict=True):
            self.register_buffer(name, boxes.tensor.clone())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """A picture ``[1, 3, H, W]`` to boxes, scores and, with a mask branch, masks."""
        features = self.backbone(self.normalise(images))
        proposals, real = self._propose(features)
        boxes, scores = self._classify(features, proposals)
        scores = torch.where(real[:, None], scores, 0.0)
        if self.mask_pooler is None:
            return boxes, scores
        heads = self.roi_heads
        pooled = self.mask_pooler([features[n] for n in heads.mask_in_features], boxes)
        return boxes, scores, heads.mask_head.layers(pooled)[:, 0].sigmoid()

    def _propose(self, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """R proposals ``[R, 4]``, and which of them are real ``[R]``."""
        levels = [features[name] for name in self.rpn.in_features]
        found = [
            self._best_of_level(logits, deltas, getattr(self, name))
            for name, logits, deltas in zip(self.anchors, *self.rpn.rpn_head(levels), strict=True)
        ]
        boxes = self._clip(torch.cat([boxes for boxes, _ in found]))
        logits = torch.cat([logits for _, logits in found])
        # shifted apart, boxes of different levels do not suppress each other
        apart = max(self.size or (0,)) + 1.0
        shifts = [boxes.new_full((len(b), 1), i * apart) for i, (b, _) in enumerate(found)]
        sides = boxes[:, 2:] - boxes[:, :2]
        real = (sides > self.rpn.min_box_size).all(dim=1) & logits.isfinite()
        logits = torch.where(real, logits, -1e30)  # last, so that they suppress none of the others
        kept = nms(boxes + torch.cat(shifts), logits, self.rpn.nms_thresh)
        chosen = torch.cat([kept, kept.new_zeros(self.regions)])[: self.regions]
        return boxes[chosen], real[chosen] & self._is_filled(kept)

    def _is_filled(self, kept: Tensor) -> Tensor:
        """Which of the R places the kept boxes fill, ``[R]``."""
        ones = torch.cat([torch.ones_like(kept), kept.new_zeros(self.regions)])
        return ones[: self.regions] > 0

    def _best_of_level(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The `pre_nms_topk` best boxes of one level of one picture, and their logits."""
        scores = logits[0].permute(1, 2, 0).flatten()
        best, index = scores.topk(min(len(anchors), int(self.rpn.pre_nms_topk[False])))
        moves = deltas[0].unflatten(0, (-1, 4)).permute(2, 3, 0, 1).flatten(0, 2)
        return self.rpn.box2box_transform.apply_deltas(moves[index], anchors[index]), best

    def _classify(self, features: dict[str, Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Refined boxes ``[R, 4]`` and probabilities ``[R, K]`` of proposals ``[R, 4]``."""
        heads = self.roi_heads
        predictor: Any = heads.box_predictor
        pooled = self.box_pooler([features[n] for n in heads.box_in_features], boxes)
        dense = None
        if predictor.ensemble is not None:
            scale = 1.0 / heads.dense_stride
            cells = roi_align(features[DENSE_FEATURE], _rois(boxes), 1, scale, 0, True)
            dense = cells.flatten(1)
        scores, deltas = predictor(heads.box_head(pooled), dense)
        refined = predictor.box2box_transform.apply_deltas(deltas, boxes)
        return self._clip(refined), scores.exp()[:, :-1]

    def _clip(self, boxes: Tensor) -> Tensor:
        height, width = self.size or (0, 0)
        limits = boxes.new_tensor([width, height, width, height])
        return torch.minimum(boxes.clamp(min=0), limits)

    def settings(self) -> dict[str, Any]:
        """R, the settings of `select_detections`, and what the model does after that."""
        predictor: Any = self.roi_heads.box_predictor
        return {
            "regions": self.regions,
            "score_threshold": float(predictor.test_score_thresh),
            "nms_threshold": float(predictor.test_nms_thresh),
            "max_detections": int(predictor.test_topk_per_image),
            "left_out": self.left_out,
        }


class EveryLevelPooler(nn.Module):
    """A `StridePooler` without sorting, so that every size is fixed."""

    def __init__(self, pooler: nn.Module) -> None:
        super().__init__()
        if not isinstance(pooler, StridePooler):
            raise ConfigError(
                f"a detector that pools with {type(pooler).__name__} cannot be exported; its "
                "poolers must be densedet's StridePooler"
            )
        self.pooler = pooler

    def forward(self, levels: list[Tensor], boxes: Tensor) -> Tensor:
        """One map ``[1, C, h, w]`` a level and boxes ``[R, 4]`` to ``[R, C, S, S]``."""
        chosen = self.pooler.assign_levels([Boxes(boxes)])
        rois = _rois(boxes)
        pooled = None
        for index, (pool, level) in enumerate(zip(self.pooler.level_poolers, levels, strict=True)):
            values = pool(level, rois)
            here = (chosen == index)[:, None, None, None]
            pooled = values if pooled is None else torch.where(here, values, pooled)
        assert pooled is not None
        return pooled


def select_detections(
    boxes: Tensor, scores: Tensor, masks: Tensor | None, metadata: Mapping[str, Any], output: Size
) -> Instances:
    """The detections of a picture: suppression per category, as the model itself does it.

    Args:
        boxes: ``[R, 4]``, an output of the detector.
        scores: ``[R, K]``, likewise.
        masks: ``[R, M, M]``, likewise; None without a mask branch.
        metadata: of the file.
        output: (height, width) of the result, pixels.

    Returns:
        ``pred_boxes``, ``scores``, ``pred_classes`` (indices into the labels of the file) and, with
        masks, ``pred_masks`` ``[N, height, width]`` bool.
    """
    settings, size = metadata["settings"], tuple(metadata["input"]["size"])
    background = scores.new_zeros(len(scores), 1)
    instances, rows = fast_rcnn_inference_single_image(
        boxes,
        torch.cat([scores, background], dim=1),
        size,
        settings["score_threshold"],
        settings["nms_threshold"],
        settings["max_detections"],
    )
    if masks is not None:
        instances.pred_masks = masks[rows][:, None]
    return postprocess(instances, *output)


def _rois(boxes: Tensor) -> Tensor:
    """Boxes ``[R, 4]`` of the first picture as ``[R, 5]``."""
    return torch.cat([boxes.new_zeros(boxes.shape[0], 1), boxes], dim=1)
