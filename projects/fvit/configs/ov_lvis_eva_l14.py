"""F-ViT with masks, EVA02-CLIP-L/14-336, OV-LVIS. For CLIPSelf weights: clip.pretrained=FILE."""

from ....configs.common.models.fvit_l14 import use_l14
from .ov_lvis_eva_b16 import clip, dataloader, lr_multiplier, model, optimizer, train

use_l14(model, clip)
dataloader.image_size = 896
# a larger exponent for unseen classes (0.6 to 0.8) favours rare classes over the others
model.roi_heads.box_predictor.ensemble.unseen = 0.4
train.output_dir = "output/fvit/ov_lvis_eva_l14"
