# A small network on Detectron2's records that trains in milliseconds and draws nothing at random.
import torch
from detectron2.config import LazyCall as L
from detectron2.engine import HookBase
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import nn

from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import constant as lr_multiplier
from ....configs.common.train import train
from .tiny_data import dataloader  # noqa: F401


class PlainModel(nn.Module):
    """Mean colours -> number of objects; `poison` makes a loss NaN at that iteration."""

    def __init__(self, width=8, poison=-1):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.GroupNorm(2, width)
        self.head = nn.Linear(width, 1)
        self.frozen = nn.Linear(width, 1).requires_grad_(False)
        self.poison, self.calls = poison, 0

    def forward(self, batch):
        features = [self.norm(self.stem(one["image"][None] / 255.0)) for one in batch]
        counts = self.head(torch.cat([f.mean((2, 3)) for f in features]))[:, 0]
        if not self.training:
            return [{"instances": Instances((64, 64), scores=c[None].sigmoid())} for c in counts]
        wanted = torch.tensor([float(len(one["instances"])) for one in batch])
        self.calls += 1
        shrink = self.head.weight.square().mean()
        if self.calls - 1 == self.poison:
            shrink = shrink * float("nan")
        return {"loss_count": (counts - wanted).square().mean(), "loss_shrink": shrink}


class SaveGradients(HookBase):
    """Save each rank's gradients of the first step."""

    def __init__(self, folder):
        self.folder = folder

    def after_backward(self):
        if self.trainer.iter == 0:
            named = self.trainer.model.named_parameters()
            gradients = {n.removeprefix("module."): p.grad for n, p in named if p.requires_grad}
            torch.save(gradients, f"{self.folder}/gradients{comm.get_rank()}.pt")


model = L(PlainModel)(width=8, poison=-1)
optimizer.lr = 0.01
train.max_iter = 6
train.checkpointer = dict(period=2, max_to_keep=2)
train.log_period = 1
train.num_threads = 1
train.device = "cpu"
train.hooks = [L(SaveGradients)(folder="${train.output_dir}")]
lr_multiplier.warmup_iters = 4
