"""Semantic FPN on the tiny CLIP, all of it trained, Shapes World: no guidance, for comparison."""

from densedet.modeling.backbone import AlignedViT

from ....configs.common.data.shapes_world_semantic import dataloader
from ....configs.common.models.clip_semantic_fpn import clip, model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import poly as lr_multiplier
from ....configs.common.train import train

clip.update(model="densedet-tiny", pretrained="shipped", embed_dim=128, grid=20)
trunk = model.backbone.bottom_up
trunk._target_ = AlignedViT
# patches of 8 pixels: strides 4, 8, 16, 32
trunk.update(taps=["block0", "block1", "block2", "block3"], scales=[2.0, 1.0, 0.5, 0.25])
model.backbone.out_channels = 64
model.sem_seg_head.update(num_classes=70, conv_dims=64, norm="BN")
for level in model.sem_seg_head.input_shape.values():
    level.channels = 64
model.vocabulary.name = "shapes_world"
model.update(window=160, window_stride=107)

# 600 scenes / 8 = 75 iterations an epoch; 5 epochs
train.max_iter = 5 * 75
train.eval_period = 0
train.clip_grad = dict(max_norm=1.0, norm_type=2.0)
train.output_dir = "output/denseclip/quickstart_clip"
lr_multiplier.update(warmup_iters=20, warmup_factor=0.01)
optimizer.update(lr=1e-2, weight_decay=1e-4)
optimizer.params.lr_factors = {r"\.visual\.": 0.1}
