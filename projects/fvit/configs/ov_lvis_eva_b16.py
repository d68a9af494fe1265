"""F-ViT with masks, EVA02-CLIP-B/16, OV-LVIS. For CLIPSelf weights: clip.pretrained=FILE."""

from densedet.modeling.rpn import NormRPNHead

from ....configs.common.data.ov_lvis import dataloader
from ....configs.common.models.fvit import clip, model
from ....configs.common.models.fvit_mask import mask_branch
from ....configs.common.schedule import step as lr_multiplier
from .ov_coco_eva_b16 import optimizer, train

model.vocabulary.name = "ov_lvis"
model.proposal_generator.head._target_ = NormRPNHead
model.roi_heads.update(mask_branch)
model.roi_heads.proposal_matcher.allow_low_quality_matches = True
model.roi_heads.box_predictor.update(
    background_weight=0.9,
    test_score_thresh=1e-4,
    test_nms_thresh=0.5,
    test_topk_per_image=300,
)
model.roi_heads.box_predictor.ensemble.update(seen=0.1, unseen=0.6, temperature=50.0)

# 100,170 images are listed (those left without annotations are skipped) / 64 = 1,566 iterations an
# epoch; 48 epochs, x 0.1 after 32 and 44
train.max_iter = 48 * 1566
lr_multiplier.milestones = [32 * 1566, 44 * 1566]
train.eval_period = 0
train.checkpointer.period = 4 * 1566
train.output_dir = "output/fvit/ov_lvis_eva_b16"
