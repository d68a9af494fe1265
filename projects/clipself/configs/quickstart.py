"""CLIPSelf of the tiny CLIP on 600 unlabelled scenes of Shapes World; two minutes on the CPU."""

from ....configs.common.data.clipself_coco import dataloader
from ....configs.common.data.shapes_world import dataloader as shapes_world
from ....configs.common.models.clipself import clip, interpolation, model
from ....configs.common.optim import MuonAdamW as optimizer
from ....configs.common.schedule import cosine as lr_multiplier
from ....configs.common.train import train

clip.update(model="densedet-tiny", pretrained="shipped", stride=8)
dataloader.image_size = 160
dataloader.register = shapes_world.register
# grids of up to 6 x 6 cells, of which 12 at random; the scenes' annotations are not used
dataloader.train.dataset.names = "shapes_world_kind_train"
dataloader.train.mapper.regions.max_regions = 12
dataloader.train.update(total_batch_size=6, num_workers=0)
dataloader.test.dataset.names = "shapes_world_panoptic_val"
dataloader.test.mapper.crop_enlarge = 1.0
dataloader.test.num_workers = 0
dataloader.evaluator.embedder.update(templates="single", background=None)
# three fairer baselines beside the value path: see the README
dataloader.evaluator.modes = [
    "boxes",
    "masks",
    "crops",
    "boxes_tokens",
    "boxes_values",
    "boxes_attention",
]

# This CLIP never saw black margins: the crops are stretched to squares of 48 pixels. Everything but
# the batch norms of the stem trains.
model.update(trainable="all", crop_padding="stretch")
# 600 scenes / 6 = 100 iterations an epoch; 3 epochs
train.max_iter = 3 * 100
train.eval_period = 0
interpolation.alpha = 1.0
train.hooks = [interpolation]
train.output_dir = "output/quickstart/distil"
lr_multiplier.warmup_iters = 20
