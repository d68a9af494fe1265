"""The data set of custom.py on the tiny CLIP, pictures of 160 pixels: minutes on two CPU cores.

On the CLIP of projects/clipself/configs/custom_tiny.py; clip.pretrained=shipped for the original.
"""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from densedet.data import ResizeShortestEdge, resize_longest_side

from ...clipself.configs.quickstart_detector import clip, lr_multiplier, model, optimizer, train
from .custom import custom, dataloader, vocabulary

clip.pretrained = "output/custom/distil/clipself.safetensors"
model.backbone.bottom_up.bottom_up.visual.pretrained = "${clip.pretrained}"
model.vocabulary = vocabulary
# boxes only
model.roi_heads.update(mask_in_features=None, mask_pooler=None, mask_head=None)
dataloader.image_size = 160
dataloader.train.mapper.augmentations = [
    L(ResizeShortestEdge)(
        short_edge_length="${dataloader.image_size}",
        max_size="${dataloader.image_size}",
        sample_style="choice",
    ),
    L(T.RandomFlip)(prob=0.5, horizontal=True),
]
dataloader.train.update(total_batch_size=8, num_workers=0)
dataloader.test.num_workers = 0
train.output_dir = "output/custom/detector"
