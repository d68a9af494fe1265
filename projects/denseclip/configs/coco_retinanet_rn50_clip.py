"""RetinaNet on CLIP's ResNet-50, COCO, 12 epochs: the CLIP-only baseline of DenseCLIP."""

from ....configs.common.data.coco import dataloader
from ....configs.common.models.clip_retinanet import clip, model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import step as lr_multiplier
from ....configs.common.train import train

# 117,266 images with annotations / 16 = 7,330 iterations an epoch; x 0.1 after 8 and 11 of 12
train.max_iter = 12 * 7330
lr_multiplier.update(milestones=[8 * 7330, 11 * 7330], warmup_iters=500, warmup_factor=0.001)
train.eval_period = train.checkpointer.period = 7330
train.sync_batch_norm = True
train.clip_grad = dict(max_norm=0.1, norm_type=2.0)
train.output_dir = "output/denseclip/coco_retinanet_rn50_clip"
optimizer.update(lr=1e-4, weight_decay=1e-4)
optimizer.params.lr_factors = {r"\.(visual|levels)\.": 0.1}
