"""Open-vocabulary Panoptic FPN on the tiny CLIP, Shapes World; minutes on two CPU cores."""

from ....configs.common.data.shapes_world_panoptic import dataloader
from ....configs.common.models.fvit_tiny import clip, model
from ....configs.common.models.panoptic_fpn import make_panoptic
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import cosine as lr_multiplier
from ....configs.common.train import train

model.vocabulary.kind = None  # things and stuff
make_panoptic(model, channels=64, strides=(4, 8, 16), norm="GN")
model.sem_seg_head.conv_dims = 64
model.combine_stuff_area_thresh = 64

# 600 scenes / 8 = 75 iterations an epoch; 5 epochs
train.max_iter = 5 * 75
train.eval_period = 0
train.clip_grad = dict(max_norm=1.0, norm_type=2.0)
train.output_dir = "output/panoptic_fpn/quickstart"
lr_multiplier.warmup_iters = 20
optimizer.update(lr=1e-3, weight_decay=0.05)
