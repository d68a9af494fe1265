"""Open-vocabulary Panoptic FPN on a frozen CLIP ResNet-50, COCO panoptic; see coco_eva_b16.py."""

from ....configs.common.models.fvit_mask import mask_branch as _mask_branch
from ....configs.common.models.panoptic_fpn import make_panoptic
from ...fvit.configs.ov_coco_rn50 import clip, model
from .coco_eva_b16 import dataloader, lr_multiplier, optimizer, train

model.vocabulary.name = "coco_panoptic"
model.backbone.bottom_up.square_size = 0  # images of any shape
model.roi_heads.update(_mask_branch)
make_panoptic(model, norm="GN")
train.output_dir = "output/panoptic_fpn/coco_rn50"
