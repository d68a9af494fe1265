"""DenseCLIP on a ResNet-18 without pretraining, Shapes World, for comparison."""

from ....configs.common.models.lightweight import trunk as _trunk
from ...denseclip.configs.quickstart import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

# 5 x 5 positions: stride 32 of 160 pixels
_trunk.update(embed_dim="${clip.embed_dim}", grid=5, pretrained=False)
_guided = model.backbone.bottom_up
_guided.trunk = _trunk
_guided.guidance.fused_level = "res5"
optimizer.params.lr_factors = {r"bottom_up\.trunk\.": 0.1}
train.output_dir = "output/language_bridge/quickstart_denseclip"
