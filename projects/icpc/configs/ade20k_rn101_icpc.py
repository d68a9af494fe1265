"""ICPC-style guidance with Semantic FPN on CLIP's ResNet-101, ADE20K."""

from ....configs.common.models.icpc import condition, use_recipe
from ...denseclip.configs.ade20k_rn101_denseclip import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

condition(model, dict(res2=256, res3=512, res4=1024, res5=2048), dense_level="res5")
use_recipe(dataloader, optimizer, train)
train.output_dir = "output/icpc/ade20k_rn101_icpc"
