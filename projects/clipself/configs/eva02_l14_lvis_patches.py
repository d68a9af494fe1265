"""CLIPSelf, EVA02-CLIP-L/14 (336 pixels), grid patches of the 100,170 images of LVIS v1."""

from .eva02_l14_coco_patches import clip, dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.names = "clipself_lvis_train"
# 100,170 images / 16 = 6,260.6 iterations an epoch, counted as 6,261; 6 epochs
train.max_iter = 6 * 6261
train.eval_period = 6261
train.checkpointer.period = 6261
train.output_dir = "output/clipself/eva02_l14_lvis_patches"
