"""F-ViT, EVA02-CLIP-L/14-336, OV-COCO. For CLIPSelf weights: clip.pretrained=FILE."""

from ....configs.common.models.fvit_l14 import use_l14
from .ov_coco_eva_b16 import clip, dataloader, lr_multiplier, model, optimizer, train

use_l14(model, clip)
dataloader.image_size = 896
train.output_dir = "output/fvit/ov_coco_eva_l14"
