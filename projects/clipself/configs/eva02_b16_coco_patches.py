"""CLIPSelf, EVA02-CLIP-B/16, grid patches of COCO: the first of the released recipes."""

from ....configs.common.data.clipself_coco import dataloader
from ....configs.common.models.clipself import clip, interpolation, model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import clip_cosine as lr_multiplier
from ....configs.common.train import train

# 118,287 images / 16 = 7,392.9 iterations an epoch, counted as 7,393; 6 epochs
train.max_iter = 6 * 7393
train.eval_period = 7393
train.checkpointer.period = 7393
train.precision = "fp16"
# the last block's q and k get no gradient
train.ddp.find_unused_parameters = True
train.hooks = [interpolation]
train.output_dir = "output/clipself/eva02_b16_coco_patches"
# no decay on biases and norms
optimizer.update(lr=1e-5, weight_decay=0.1)
optimizer.params.weight_decay_1d = 0.0
