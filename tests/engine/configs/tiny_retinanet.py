# Detectron2's RetinaNet on the squares of tiny_data; its loss normaliser is a moving average.
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead

from .tiny_rcnn import TinyBackbone, dataloader, lr_multiplier, optimizer, train  # noqa: F401

model = L(RetinaNet)(
    backbone=L(TinyBackbone)(width=16),
    head=L(RetinaNetHead)(
        input_shape=[ShapeSpec(channels=16, stride=8)],
        num_classes=2,
        conv_dims=[16],
        num_anchors=3,
    ),
    head_in_features=["p3"],
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[24]], aspect_ratios=[0.5, 1.0, 2.0], strides=[8]
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(
        thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True
    ),
    num_classes=2,
    pixel_mean=[120.0, 120.0, 120.0],
    pixel_std=[60.0, 60.0, 60.0],
)
