"""DenseCLIP on a ResNet-18 of ImageNet, ADE20K; decoder 128 wide. For comparison.

The last stage meets the text through an attention pool with random weights, as in DenseCLIP.
"""

from ....configs.common.models.lightweight import decoder, lighten
from ....configs.common.models.lightweight import trunk as _trunk
from ...denseclip.configs.ade20k_rn50_denseclip import (
    clip,
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

_trunk.embed_dim = "${clip.embed_dim}"
model.backbone.bottom_up.trunk = _trunk
lighten(model, clip, optimizer)
train.output_dir = "output/language_bridge/ade20k_resnet18_denseclip"
