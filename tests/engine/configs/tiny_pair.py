# The small network as a student beside the teacher that it started from.
import copy

from detectron2.config import LazyCall as L
from torch import nn

from densedet.engine.interpolation import WeightInterpolation

from .tiny_plain import (  # noqa: F401
    dataloader,
    lr_multiplier,
    optimizer,
    train,
)
from .tiny_plain import model as plain


class Pair(nn.Module):
    """The student learns; the teacher only keeps the weights of the start."""

    def __init__(self, student):
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)

    def forward(self, batch):
        return self.student(batch)


model = L(Pair)(student=plain)
train.eval_period = 2
train.hooks = [L(WeightInterpolation)(alpha=0.7, export=None)]
