"""CLIP ViT-B/16 segments five data sets without any training, as MaskCLIP does: --eval-only.

Short side 448, windows of 448, stride 224. After CLIPSelf: clip.pretrained=FILE
"""

from ....configs.common.data.zero_shot_semantic import dataloader
from ....configs.common.models.zero_shot import clip, model
from ....configs.common.train import train

train.output_dir = "output/panoptic_fpn/zero_shot_vitb16"
