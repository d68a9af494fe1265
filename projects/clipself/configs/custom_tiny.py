"""CLIPSelf of the tiny CLIP on your own pictures, without their labels: docs/custom_data.md."""

from .custom import custom
from .custom import dataloader as annotated
from .quickstart import clip, dataloader, lr_multiplier, model, optimizer, train

dataloader.register = annotated.register
dataloader.train.dataset.names = annotated.train.dataset.names
del dataloader.test, dataloader.evaluator
model.modes = ["boxes"]
train.output_dir = "output/custom/distil"
