# A Faster R-CNN of Detectron2's parts: anchors and proposals are sampled at random in training.
import os
import signal
import sys
import time

from detectron2.config import LazyCall as L
from detectron2.engine import HookBase
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    StandardROIHeads,
)
from torch import nn

from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import constant as lr_multiplier
from ....configs.common.train import train
from .tiny_data import dataloader  # noqa: F401


class TinyBackbone(Backbone):
    """Stride 8, one level."""

    def __init__(self, width=16):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=4), nn.ReLU(), nn.Conv2d(width, width, 2, stride=2)
        )
        self.width = width

    def forward(self, images):
        return {"p3": self.layers(images)}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=self.width, stride=8)}


class KillYourself(HookBase):
    """SIGKILL, or no answer, in the middle of the step that the environment names."""

    def after_backward(self):
        if os.environ.get("TINY_KILL_AT") == str(self.trainer.iter):
            os.kill(os.getpid(), signal.SIGKILL)

    def before_step(self):
        if os.environ.get("TINY_HANG_AT") == str(self.trainer.iter):
            print("hangs", file=sys.stderr, flush=True)
            time.sleep(3600)


model = L(GeneralizedRCNN)(
    backbone=L(TinyBackbone)(width=16),
    proposal_generator=L(RPN)(
        in_features=["p3"],
        head=L(StandardRPNHead)(in_channels=16, num_anchors=3),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[24]], aspect_ratios=[0.5, 1.0, 2.0], strides=[8]
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=16,
        positive_fraction=0.5,
        pre_nms_topk=(50, 50),
        post_nms_topk=(20, 20),
        nms_thresh=0.7,
    ),
    roi_heads=L(StandardROIHeads)(
        num_classes=2,
        batch_size_per_image=8,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=["p3"],
        box_pooler=L(ROIPooler)(
            output_size=4, scales=(1.0 / 8,), sampling_ratio=0, pooler_type="ROIAlignV2"
        ),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=16, height=4, width=4), conv_dims=[], fc_dims=[32]
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=32),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes=2,
            test_score_thresh=0.0,
            test_topk_per_image=5,
        ),
    ),
    pixel_mean=[120.0, 120.0, 120.0],
    pixel_std=[60.0, 60.0, 60.0],
)
optimizer.lr = 0.01
train.max_iter = 10
train.checkpointer = dict(period=3, max_to_keep=2)
train.clip_grad = dict(max_norm=1.0, norm_type=2.0)
train.num_threads = 1
train.device = "cpu"
lr_multiplier.warmup_iters = 4
train.hooks = [L(KillYourself)()]
