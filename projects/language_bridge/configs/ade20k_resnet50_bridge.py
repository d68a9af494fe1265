"""Language bridge on a ResNet-50 of ImageNet, ADE20K; decoder 128 wide."""

from .ade20k_resnet18_bridge import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.trunk.name = "resnet50"
model.backbone.bottom_up.guidance.channels = 2048
train.output_dir = "output/language_bridge/ade20k_resnet50_bridge"
