"""quickstart.py with a text tower that was never trained: its words mean nothing."""

from .quickstart import clip, dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up.guidance.text.encoder.pretrained = None
train.output_dir = "output/denseclip/quickstart_random_text"
