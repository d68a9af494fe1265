"""ICPC-style guidance with Semantic FPN on CLIP's ViT-B/16, COCO-Stuff10k, crops of 640."""

from ....configs.common.data.coco_stuff10k import dataloader
from ....configs.common.models.icpc import use_coco_stuff
from .ade20k_vitb16_icpc import clip, lr_multiplier, model, optimizer, train

dataloader.crop_size = 640
use_coco_stuff(model)
train.output_dir = "output/icpc/coco_stuff10k_vitb16_icpc"
