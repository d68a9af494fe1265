"""Language bridge on a MobileNetV2 of ImageNet, ADE20K; decoder 128 wide."""

from .ade20k_resnet18_bridge import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.trunk.name = "mobilenetv2_100"
model.backbone.bottom_up.guidance.channels = 320
train.output_dir = "output/language_bridge/ade20k_mobilenetv2_bridge"
