"""CLIPSelf, EVA02-CLIP-B/16, region proposals of COCO, whose crops are 1.5 times as large."""

from detectron2.config import LazyCall as L

from densedet.regions import BoxRegions

from .eva02_b16_coco_patches import clip, dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.names = "clipself_coco_proposals"
dataloader.train.mapper.regions = L(BoxRegions)(
    source="annotations", max_regions=20, enlarge=1.5, min_area=8.0**2, max_area=1024.0**2
)
train.output_dir = "output/clipself/eva02_b16_coco_proposals"
