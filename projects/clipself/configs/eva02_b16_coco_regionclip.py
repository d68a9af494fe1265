"""The RegionCLIP-style baseline, EVA02-CLIP-B/16: boxes with noun labels instead of a teacher."""

import math

from detectron2.config import LazyCall as L

from densedet.regions import BoxRegions

from ....configs.common.models.region_clip import label_vocabulary, model
from .eva02_b16_coco_patches import clip, dataloader, lr_multiplier, optimizer, train

# the first 20 annotated boxes in the order of the file
dataloader.train.dataset.names = "clipself_coco_regionclip"
dataloader.train.mapper.regions = L(BoxRegions)(
    source="annotations",
    max_regions=20,
    enlarge=1.0,
    min_area=0.0,
    max_area=math.inf,
    shuffle=False,
)
train.output_dir = "output/clipself/eva02_b16_coco_regionclip"
