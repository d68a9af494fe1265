"""Cityscapes panoptic, 8 things and 11 kinds of stuff; whole images of 1024 x 2048 in testing.

Training takes crops of 512 x 1024 of images scaled by 0.5 to 2 (our choice).
"""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T

from densedet.data import register_cityscapes

from .coco_panoptic import dataloader

dataloader.register = [L(register_cityscapes)()]
dataloader.vocabulary.name = "cityscapes_19"
dataloader.train.dataset.names = "cityscapes_panoptic_train"
dataloader.train.mapper.augmentations = [
    L(T.ResizeScale)(min_scale=0.5, max_scale=2.0, target_height=1024, target_width=2048),
    L(T.RandomCrop)(crop_type="absolute", crop_size=[512, 1024]),
    L(T.RandomFlip)(prob=0.5, horizontal=True),
]
dataloader.train.total_batch_size = 32
dataloader.test.dataset.names = "cityscapes_panoptic_val"
dataloader.test.mapper.augmentations[0].update(short_edge_length=1024, max_size=2048)
