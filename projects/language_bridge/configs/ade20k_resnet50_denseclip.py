"""DenseCLIP on a ResNet-50 of ImageNet, ADE20K; decoder 128 wide. For comparison."""

from .ade20k_resnet18_denseclip import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.trunk.name = "resnet50"
train.output_dir = "output/language_bridge/ade20k_resnet50_denseclip"
