"""Mask R-CNN on a CLIP ResNet-50, all of it trained: the CLIP-only baseline of DenseCLIP."""

from detectron2 import model_zoo

from ..clip_statistics import pixel_mean, pixel_std
from .clip_retinanet import clip
from .clip_retinanet import model as retinanet

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up = retinanet.backbone.bottom_up
model.backbone.in_features = ["res2", "res3", "res4", "res5"]
model.roi_heads.proposal_matcher.allow_low_quality_matches = True
model.update(input_format="RGB", pixel_mean=pixel_mean, pixel_std=pixel_std)
