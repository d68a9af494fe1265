"""Semantic FPN on a MobileNetV2 of ImageNet, ADE20K; decoder 128 wide. No words, for comparison."""

from .ade20k_resnet18_semantic_fpn import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.name = "mobilenetv2_100"
train.output_dir = "output/language_bridge/ade20k_mobilenetv2_semantic_fpn"
