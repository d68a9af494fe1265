"""CLIPSelf, EVA02-CLIP-B/16, on your own pictures, without their labels: docs/custom_data.md."""

from ....configs.common.data.custom_coco import custom
from ....configs.common.data.custom_coco import dataloader as annotated
from .eva02_b16_coco_patches import clip, dataloader, lr_multiplier, model, optimizer, train

dataloader.register = annotated.register[:1]
dataloader.train.dataset.names = "custom_train"
# nothing is evaluated here: that takes panoptic annotations
del dataloader.test, dataloader.evaluator
model.modes = ["boxes"]
# 6 epochs of 8,000 images / 16 = 500 iterations; set it for the number of your images
train.max_iter = 6 * 500
train.eval_period = 0
train.checkpointer.period = 500
train.output_dir = "output/custom/distil"
