"""COCO-Stuff 164k, 171 classes; resizing and crops as on ADE20K (our choice)."""

from detectron2.config import LazyCall as L

from densedet.data import register_coco_stuff_164k

from .ade20k import dataloader

dataloader.register = [L(register_coco_stuff_164k)()]
dataloader.num_classes = 171
dataloader.train.dataset.names = "coco_stuff_164k_train"
dataloader.train.total_batch_size = 16
dataloader.test.dataset.names = "coco_stuff_164k_val"
