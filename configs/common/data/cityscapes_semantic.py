"""Cityscapes, 19 classes; crops of 512 x 1024 of images scaled by 0.5 to 2, whole in testing."""

from detectron2.config import LazyCall as L

from densedet.data import register_cityscapes

from .ade20k import dataloader

dataloader.register = [L(register_cityscapes)()]
dataloader.update(num_classes=19, crop_size=1024)  # the width: half of it is the height
dataloader.train.dataset.names = "cityscapes_semantic_train"
dataloader.train.mapper.augmentations[1].crop_size = [512, "${......crop_size}"]
dataloader.train.total_batch_size = 16
dataloader.test.dataset.names = "cityscapes_semantic_val"
