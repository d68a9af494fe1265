"""Semantic FPN on a ResNet-18 of ImageNet, ADE20K; decoder 128 wide. No words, for comparison."""

from ....configs.common.models.lightweight import decoder, lighten
from ....configs.common.models.lightweight import trunk as _trunk
from ...denseclip.configs.ade20k_rn50_clip import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up = _trunk
lighten(model, clip, optimizer)
train.output_dir = "output/language_bridge/ade20k_resnet18_semantic_fpn"
