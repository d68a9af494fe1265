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
guidance = model.backbone.bottom_up.guidance
guidance.text.vocabulary.name = "shapes_world"
guidance.update(visual_dim=128, text_dim=128, blocks=1, level="res3")  # stride 8, that of the tower
train.output_dir = "output/language_bridge/quickstart_tiny_clip"
