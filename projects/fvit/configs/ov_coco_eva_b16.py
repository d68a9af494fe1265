"""F-ViT, EVA02-CLIP-B/16, OV-COCO. For CLIPSelf weights: clip.pretrained=FILE."""

from ....configs.common.data.ov_coco import dataloader
from ....configs.common.models.fvit import clip, model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import constant as lr_multiplier
from ....configs.common.train import train

# 107,761 images / 64 = 1,684 iterations an epoch; 3 epochs at a constant rate
train.max_iter = 3 * 1684
train.eval_period = train.checkpointer.period = 1684
train.output_dir = "output/fvit/ov_coco_eva_b16"
train.clip_grad = dict(max_norm=1.0, norm_type=2.0)
train.precision = "fp16"  # on a CPU: train.precision=fp32
train.grad_scaler = dict(init_scale=512.0, dynamic=False)
