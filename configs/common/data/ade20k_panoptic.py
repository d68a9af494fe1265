"""ADE20K panoptic, 100 things and 50 kinds of stuff, for testing: short side 640."""

from detectron2.config import LazyCall as L

from densedet.data import register_ade20k_panoptic

from .coco_panoptic import dataloader

dataloader.register = [L(register_ade20k_panoptic)()]
dataloader.vocabulary.name = "ade20k_panoptic"
del dataloader["train"]
dataloader.test.dataset.names = "ade20k_panoptic_val"
dataloader.test.mapper.augmentations[0].update(short_edge_length=640, max_size=2560)
