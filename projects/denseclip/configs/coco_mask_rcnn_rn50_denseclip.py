"""DenseCLIP with Mask R-CNN on CLIP's ResNet-50, COCO, 12 epochs."""

from ....configs.common.models.denseclip import guide_detector
from .coco_mask_rcnn_rn50_clip import clip, dataloader, lr_multiplier, model, optimizer, train

guide_detector(model, optimizer)
train.output_dir = "output/denseclip/coco_mask_rcnn_rn50_denseclip"
