"""Language bridge on a ResNet-18 of ImageNet, ADE20K; decoder 128 wide."""

from ....configs.common.models.lightweight import bridge
from .ade20k_resnet18_semantic_fpn import (
    clip,
    dataloader,
    decoder,
    lr_multiplier,
    model,
    optimizer,
    train,
)

bridge(model, channels=512)
train.output_dir = "output/language_bridge/ade20k_resnet18_bridge"
