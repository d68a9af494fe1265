"""DenseCLIP on a PoolFormer-S12 of ImageNet, ADE20K; decoder 128 wide. For comparison."""

from .ade20k_resnet18_denseclip import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.trunk.name = "poolformer_s12"
train.output_dir = "output/language_bridge/ade20k_poolformer_s12_denseclip"
