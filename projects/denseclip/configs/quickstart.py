"""DenseCLIP with Semantic FPN on the tiny CLIP, Shapes World; minutes on two CPU cores."""

from ....configs.common.models.denseclip import guide
from .quickstart_clip import clip, dataloader, lr_multiplier, model, optimizer, train

guide(model, optimizer)
_guidance = model.backbone.bottom_up.guidance
_guidance.fused_level = "res3"  # stride 8, that of the score map
_guidance.text.vocabulary.name = "shapes_world"
_guidance.decoder.update(width=64, heads=2, layers=3)
train.output_dir = "output/denseclip/quickstart"
