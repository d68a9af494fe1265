"""Language bridge on the tiny CLIP, Shapes World; minutes on two CPU cores."""

from ....configs.common.models.lightweight import bridge
from ...denseclip.configs.quickstart_clip import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

bridge(model, channels=128)
_guidance = model.backbone.bottom_up.guidance
_guidance.text.vocabulary.name = "shapes_world"
_guidance.update(visual_dim=128, text_dim=128, blocks=1)
_guidance.level = "res3"  # stride 8, that of the tower
train.output_dir = "output/language_bridge/quickstart_tiny_clip"
