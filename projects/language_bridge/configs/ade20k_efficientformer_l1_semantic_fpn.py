"""Semantic FPN on an EfficientFormer-L1 of ImageNet, ADE20K; decoder 128 wide. For comparison."""

from .ade20k_resnet18_semantic_fpn import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.name = "efficientformer_l1"
train.output_dir = "output/language_bridge/ade20k_efficientformer_l1_semantic_fpn"
