"""ADE20K-Full, 847 classes, 16-bit labels; resizing and crops as on ADE20K (our choice).

The names of the classes are read from the folder of the data: ``ade20k_full_vocabulary``.
"""

from detectron2.config import LazyCall as L

from densedet.data import register_ade20k_full

from .ade20k import dataloader

dataloader.register = [L(register_ade20k_full)()]
dataloader.update(num_classes=847, ignore_value=65535)
dataloader.train.dataset.names = "ade20k_full_sem_seg_train"
dataloader.train.total_batch_size = 16
dataloader.test.dataset.names = "ade20k_full_sem_seg_val"
