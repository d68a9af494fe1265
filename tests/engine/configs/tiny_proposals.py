# CLIPSelf of the shipped CLIP on region proposals of Detectron2, whose crops are embedded once.
from detectron2.config import LazyCall as L

from densedet.data import register_region_images
from densedet.regions import BoxRegions

from .tiny_clipself import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

dataloader.register = [
    L(register_region_images)(
        name="tiny_proposals", json_file="???", image_root="???", proposal_file="???"
    )
]
dataloader.train.dataset.update(names="tiny_proposals", filter_empty=False)
dataloader.train.mapper.regions = L(BoxRegions)(source="proposals")
dataloader.train.total_batch_size = 2
model.teacher_cache = "???"
train.max_iter = 2
