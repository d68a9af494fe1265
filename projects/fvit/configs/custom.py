"""F-ViT, EVA02-CLIP-B/16, on a data set of your own: docs/custom_data.md.

On the CLIP of projects/clipself/configs/custom.py; clip.pretrained=merged2b_s8b_b131k for the
original one.
"""

from ....configs.common.data.custom_coco import custom, dataloader, vocabulary
from .ov_coco_eva_b16 import clip, lr_multiplier, model, optimizer, train

clip.pretrained = "output/custom/distil/clipself.safetensors"
model.vocabulary = vocabulary
optimizer.lr = 1e-4 * 16 / 64  # that of the recipe is for 64 images a step
# 12 epochs of 8,000 images / 16 = 500 iterations; set it for the number of your images
dataloader.train.total_batch_size = 16
train.max_iter = 12 * 500
train.eval_period = train.checkpointer.period = 500
train.output_dir = "output/custom/detector"
