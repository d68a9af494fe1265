"""Language bridge on a PoolFormer-S12 of ImageNet, ADE20K; decoder 128 wide."""

from .ade20k_resnet18_bridge import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.backbone.bottom_up.trunk.name = "poolformer_s12"
model.backbone.bottom_up.guidance.channels = 512
train.output_dir = "output/language_bridge/ade20k_poolformer_s12_bridge"
