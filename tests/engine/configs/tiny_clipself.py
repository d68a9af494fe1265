# CLIPSelf of the shipped CLIP on grids of the squares of tiny_data.
import torch
from detectron2.config import LazyCall as L

from densedet.clip import create_visual
from densedet.data.region_mapper import RegionMapper
from densedet.modeling.meta_arch import CLIPSelf
from densedet.regions import GridRegions

from .tiny_plain import dataloader, lr_multiplier, optimizer, train  # noqa: F401

del dataloader["test"], dataloader["evaluator"]
dataloader.train.mapper = L(RegionMapper)(regions=L(GridRegions)(max_split=3))
model = L(CLIPSelf)(
    student=L(create_visual)(model="densedet-tiny", pretrained="shipped"),
    student_size=64,
    trainable=4,
)
# the gradients of key biases are rounding errors, which AdamW would blow up
optimizer = L(torch.optim.SGD)(params=optimizer.params, lr=0.1)
train.max_iter = 3
train.hooks = []
