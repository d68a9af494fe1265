"""Language bridge on an EfficientFormer-L1 of ImageNet, ADE20K; decoder 128 wide."""

from .ade20k_resnet18_bridge import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.trunk.name = "efficientformer_l1"
model.backbone.bottom_up.guidance.channels = 448
train.output_dir = "output/language_bridge/ade20k_efficientformer_l1_bridge"
