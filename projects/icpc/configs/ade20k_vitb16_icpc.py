"""ICPC-style guidance with Semantic FPN on CLIP's ViT-B/16, ADE20K, crops of 640."""

from ....configs.common.models.icpc import condition, use_recipe
from ...denseclip.configs.ade20k_vitb16_denseclip import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

condition(model, dict(res2=768, res3=768, res4=768, res5=768), dense_level="res4")  # stride 16
use_recipe(dataloader, optimizer, train)
train.output_dir = "output/icpc/ade20k_vitb16_icpc"
