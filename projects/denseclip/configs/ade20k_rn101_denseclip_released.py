"""ade20k_rn101_denseclip.py as the published code has it; for its checkpoints."""

from ....configs.common.models.denseclip import use_released_switches
from .ade20k_rn101_denseclip import clip, dataloader, lr_multiplier, model, optimizer, train

use_released_switches(model, clip, optimizer)
train.output_dir = "output/denseclip/ade20k_rn101_denseclip_released"
