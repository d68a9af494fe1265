"""ICPC-style guidance with Semantic FPN on CLIP's ResNet-101, ADE20K-Full."""

from ....configs.common.data.ade20k_full import dataloader
from ....configs.common.models.icpc import use_ade20k_full
from .ade20k_rn101_icpc import clip, lr_multiplier, model, optimizer, train

use_ade20k_full(model, train)
train.output_dir = "output/icpc/ade20k_full_rn101_icpc"
