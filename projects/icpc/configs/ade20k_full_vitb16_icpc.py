"""ICPC-style guidance with Semantic FPN on CLIP's ViT-B/16, ADE20K-Full, crops of 640."""

from ....configs.common.data.ade20k_full import dataloader
from ....configs.common.models.icpc import use_ade20k_full
from .ade20k_vitb16_icpc import clip, lr_multiplier, model, optimizer, train

dataloader.crop_size = 640
use_ade20k_full(model, train)
train.output_dir = "output/icpc/ade20k_full_vitb16_icpc"
