"""COCO-Stuff10k, 171 classes; resizing and crops as on ADE20K (our choice)."""

from detectron2.config import LazyCall as L

from densedet.data import register_coco_stuff10k

from .ade20k import dataloader

dataloader.register = [L(register_coco_stuff10k)()]
dataloader.num_classes = 171
dataloader.train.dataset.names = "coco_2017_train_stuff_10k_sem_seg"
dataloader.train.total_batch_size = 16
dataloader.test.dataset.names = "coco_2017_test_stuff_10k_sem_seg"
