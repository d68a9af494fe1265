"""The model of coco_rn50.py on COCO, ADE20K and Cityscapes panoptic: --eval-only.

A category counts as seen, for the exponents of the ensemble, where COCO has one of its names.
"""

from ....configs.common.data.ade20k_panoptic import dataloader as _ade20k
from ....configs.common.data.cityscapes_panoptic import dataloader as _cityscapes
from .coco_rn50 import clip, dataloader, lr_multiplier, model, optimizer, train

dataloader.evaluators = dict(ade20k_panoptic=_ade20k, cityscapes_panoptic=_cityscapes)
train.init_checkpoint = "output/panoptic_fpn/coco_rn50/model_final.pth"
train.output_dir = "output/panoptic_fpn/cross_dataset_rn50"
