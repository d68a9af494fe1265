"""The tiny CLIP segments Shapes World without any training, from its dense map: --eval-only.

After CLIPSelf: clip.pretrained=output/quickstart/distil/clipself.safetensors
"""

from ....configs.common.data.shapes_world_semantic import dataloader
from ....configs.common.models.zero_shot import clip, model
from ....configs.common.train import train

clip.update(model="densedet-tiny", pretrained="shipped")
model.vocabulary.name = "shapes_world"
model.embedder.templates = "single"
model.update(window=None, window_stride=None)
train.output_dir = "output/panoptic_fpn/quickstart_zero_shot"
