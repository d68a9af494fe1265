"""The detector of quickstart.py with a closed-set head: two FCs and 64 class logits, no text.

It sees the same labels. A class without labels can never win, so its unseen AP is 0 by
construction; it trains twice as long, to a fair seen AP.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    StandardROIHeads,
)

from densedet.modeling.meta_arch import ClosedSetRCNN

from ....configs.common.clip_statistics import pixel_mean, pixel_std
from .quickstart import clip, dataloader, lr_multiplier, model, optimizer, train

model._target_ = ClosedSetRCNN
del model.vocabulary, model.embedder
model.update(pixel_mean=pixel_mean, pixel_std=pixel_std)
model.roi_heads._target_ = StandardROIHeads
del model.roi_heads.dense_stride
model.roi_heads.num_classes = 64
model.roi_heads.box_head = L(FastRCNNConvFCHead)(
    input_shape=ShapeSpec(channels=64, height=5, width=5), conv_dims=[], fc_dims=[128, 128]
)
model.roi_heads.box_predictor = L(FastRCNNOutputLayers)(
    input_shape=ShapeSpec(channels=128),
    box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
    num_classes=64,
    cls_agnostic_bbox_reg=True,
    test_score_thresh=0.01,
    test_nms_thresh=0.4,
    test_topk_per_image=100,
)
train.max_iter = 10 * 75
train.output_dir = "output/quickstart/closed_set"
