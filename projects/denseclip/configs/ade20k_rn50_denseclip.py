"""DenseCLIP with Semantic FPN on CLIP's ResNet-50, ADE20K."""

from ....configs.common.models.denseclip import guide
from .ade20k_rn50_clip import clip, dataloader, lr_multiplier, model, optimizer, train

guide(model, optimizer)
train.output_dir = "output/denseclip/ade20k_rn50_denseclip"
