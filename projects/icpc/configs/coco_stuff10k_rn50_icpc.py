"""ICPC-style guidance with Semantic FPN on CLIP's ResNet-50, COCO-Stuff10k."""

from ....configs.common.data.coco_stuff10k import dataloader
from ....configs.common.models.icpc import use_coco_stuff
from .ade20k_rn50_icpc import clip, lr_multiplier, model, optimizer, train

use_coco_stuff(model)
train.output_dir = "output/icpc/coco_stuff10k_rn50_icpc"
