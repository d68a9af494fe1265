"""The RegionCLIP-style baseline, EVA02-CLIP-L/14 (336 pixels); pictures of 896, 24 blocks."""

from .eva02_b16_coco_regionclip import (
    clip,
    dataloader,
    label_vocabulary,
    lr_multiplier,
    model,
    optimizer,
    train,
)

clip.update(model="EVA02-L-14-336", pretrained="merged2b_s6b_b61k", stride=14)
dataloader.image_size = 896
model.trainable = 24
train.hooks[0].alpha = 0.95
train.output_dir = "output/clipself/eva02_l14_coco_regionclip"
