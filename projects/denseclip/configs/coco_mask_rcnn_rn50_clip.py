"""Mask R-CNN on CLIP's ResNet-50, COCO, 12 epochs: the CLIP-only baseline of DenseCLIP."""

from ....configs.common.models.clip_mask_rcnn import clip, model
from .coco_retinanet_rn50_clip import dataloader, lr_multiplier, optimizer, train

dataloader.train.mapper.use_instance_mask = True
optimizer.lr = 2e-4
train.output_dir = "output/denseclip/coco_mask_rcnn_rn50_clip"
