"""Open-vocabulary Panoptic FPN, EVA02-CLIP-B/16, COCO panoptic. CLIPSelf: clip.pretrained=FILE.

Heads, optimizer and frozen tower are those of F-ViT with masks (arXiv 2310.01403); loss weights,
combination, sizes and the 1x schedule those of Detectron2's Panoptic FPN; the ensemble has the
exponents that F-ViT has for boxes. Our choice, no published recipe.
"""

from ....configs.common.data.coco_panoptic import dataloader
from ....configs.common.models.fvit_mask import mask_branch as _mask_branch
from ....configs.common.models.panoptic_fpn import make_panoptic
from ....configs.common.schedule import step as lr_multiplier
from ...fvit.configs.ov_coco_eva_b16 import clip, model, optimizer, train

model.vocabulary.name = "coco_panoptic"
model.backbone.bottom_up.bottom_up.square_size = 0  # images of any shape
model.roi_heads.update(_mask_branch)
make_panoptic(model, norm="GN")
optimizer.lr = 1e-4 * 16 / 64  # that of F-ViT is for 64 images a step

# 118,287 images / 16 = 7,393 iterations an epoch; 12.2 epochs ("1x"), x 0.1 after 60,000 and 80,000
# 3x: train.max_iter=270000 lr_multiplier.milestones=[210000,250000]
train.max_iter = 90000
lr_multiplier.update(milestones=[60000, 80000], warmup_iters=1000)
train.eval_period = 0
train.checkpointer.period = 10000
train.output_dir = "output/panoptic_fpn/coco_eva_b16"
