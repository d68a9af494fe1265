"""ICPC-style guidance with Semantic FPN on the tiny CLIP, Shapes World; minutes on two cores."""

from ....configs.common.models.icpc import condition
from ...denseclip.configs.quickstart import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

condition(model, dict(res2=128, res3=128, res4=128, res5=128), dense_level="res3")
_guidance = model.backbone.bottom_up.guidance
_guidance.condition.width = 128
_guidance.contrast_start_iter = 50
optimizer.params.weight_decays = None  # there is no decoder
train.output_dir = "output/icpc/quickstart"
