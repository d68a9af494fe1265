"""DenseCLIP with Semantic FPN on CLIP's ViT-B/16, ADE20K, crops of 640."""

from ....configs.common.models.denseclip import guide
from .ade20k_vitb16_clip import clip, dataloader, lr_multiplier, model, optimizer, train

guide(model, optimizer)
model.backbone.bottom_up.guidance.fused_level = "res4"  # stride 16, that of the score map
model.backbone.bottom_up.trunk.drop_path = 0.1
train.output_dir = "output/denseclip/ade20k_vitb16_denseclip"
