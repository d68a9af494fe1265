"""ade20k_rn50_denseclip.py evaluated at six scales and mirrored ("ms" in the tables)."""

from detectron2.config import LazyCall as L

from densedet.modeling.test_time_augmentation import SemanticTTA

from .ade20k_rn50_denseclip import clip, dataloader, lr_multiplier, model, optimizer, train

model.tta = L(SemanticTTA)(short="${dataloader.crop_size}", long=2048)
dataloader.test.mapper.augmentations = []  # it resizes the pictures itself
train.output_dir = "output/denseclip/ade20k_rn50_denseclip_multiscale"
