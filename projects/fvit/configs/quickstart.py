"""Open-vocabulary Mask R-CNN on the tiny CLIP, Shapes World; minutes on two CPU cores."""

from ....configs.common.data.shapes_world import dataloader
from ....configs.common.models.fvit_tiny import clip, model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import cosine as lr_multiplier
from ....configs.common.train import train

# 600 scenes / 8 = 75 iterations an epoch; 5 epochs
train.max_iter = 5 * 75
train.eval_period = 0
train.clip_grad = dict(max_norm=1.0, norm_type=2.0)
train.output_dir = "output/quickstart/clip"
lr_multiplier.warmup_iters = 20
optimizer.update(lr=1e-3, weight_decay=0.05)
