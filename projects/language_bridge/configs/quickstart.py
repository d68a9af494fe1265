"""Language bridge on a ResNet-18 without pretraining, Shapes World; minutes on two CPU cores."""

from ....configs.common.models.lightweight import bridge
from .quickstart_semantic_fpn import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

bridge(model, channels=512)
_guidance = model.backbone.bottom_up.guidance
_guidance.text.vocabulary.name = "shapes_world"
_guidance.update(visual_dim=128, text_dim=128, blocks=1)  # the small setting
optimizer.params.lr_factors = {r"bottom_up\.trunk\.": 0.1}
train.output_dir = "output/language_bridge/quickstart"
