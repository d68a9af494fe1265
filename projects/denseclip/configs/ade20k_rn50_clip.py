"""Semantic FPN on CLIP's ResNet-50, ADE20K: the CLIP-only baseline of DenseCLIP."""

from ....configs.common.data.ade20k import dataloader
from ....configs.common.models.clip_semantic_fpn import clip, model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import poly as lr_multiplier
from ....configs.common.train import train

# 20,210 images / 32 = 632 iterations an epoch; 127 epochs
train.max_iter = 80000
train.eval_period = train.checkpointer.period = 8000
train.sync_batch_norm = True
train.output_dir = "output/denseclip/ade20k_rn50_clip"
optimizer.update(lr=1e-4, weight_decay=1e-4)
optimizer.params.lr_factors = {r"\.(visual|levels)\.": 0.1}
