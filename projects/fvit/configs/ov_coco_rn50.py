"""Open-vocabulary Faster R-CNN on a frozen CLIP ResNet-50 with FPN, OV-COCO.

A recipe of this project, not a published one: the head and schedule of F-ViT, CLIP's image
statistics and a learned background.
"""

from .ov_coco_eva_b16 import clip, dataloader, lr_multiplier, model, optimizer, train

clip.update(model="RN50-quickgelu", pretrained="openai", embed_dim=1024)
# the residual stages have strides 4 to 32 already: no resizers
model.backbone.bottom_up = model.backbone.bottom_up.bottom_up
model.backbone.bottom_up.out_features = ["layer1", "layer2", "layer3", "layer4"]
model.backbone.in_features = "${.bottom_up.out_features}"
model.roi_heads.dense_stride = 32
model.roi_heads.box_predictor.classifier.background = "learned"
model.embedder.background = None
model.roi_heads.box_predictor.class_relu = False
model.pixel_mean = model.pixel_std = None
train.output_dir = "output/fvit/ov_coco_rn50"
