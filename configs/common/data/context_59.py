"""PASCAL-Context, 59 classes; crops of 480 pixels, resizing as on ADE20K (our choice).

The names of the classes are read from the folder of the data: ``context_vocabulary``.
"""

from detectron2.config import LazyCall as L

from densedet.data import register_context

from .ade20k import dataloader

dataloader.register = [L(register_context)(classes=59)]
dataloader.update(num_classes=59, crop_size=480)
dataloader.train.dataset.names = "context_59_train"
dataloader.train.total_batch_size = 16
dataloader.test.dataset.names = "context_59_val"
