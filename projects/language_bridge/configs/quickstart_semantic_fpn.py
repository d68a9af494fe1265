"""Semantic FPN on a ResNet-18 without pretraining, Shapes World. No words, for comparison."""

from ....configs.common.models.lightweight import trunk as _trunk
from ...denseclip.configs.quickstart_clip import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

_trunk.pretrained = False
model.backbone.bottom_up = _trunk
optimizer.params.lr_factors = {r"bottom_up\.": 0.1}
train.output_dir = "output/language_bridge/quickstart_semantic_fpn"
