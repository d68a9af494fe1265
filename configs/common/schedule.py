# Learning-rate multipliers and poly's rates, in iterations of the config that holds them.
from detectron2.config import LazyCall as L

from densedet.engine.schedule import ClipCosine, PolyFloor, warmup_schedule

# linear warm-up, then the full rate to the end
constant = L(warmup_schedule)(
    max_iter="${train.max_iter}", warmup_iters=250, warmup_factor=0.001, decay="constant"
)
# linear warm-up, then times gamma at every milestone
step = L(warmup_schedule)(
    max_iter="${train.max_iter}",
    warmup_iters=250,
    warmup_factor=0.001,
    decay="step",
    milestones=[],
    gamma=0.1,
)
# linear warm-up, then half a cosine over the iterations that remain
cosine = L(warmup_schedule)(
    max_iter="${train.max_iter}",
    warmup_iters=250,
    warmup_factor=0.001,
    decay="cosine",
    final_factor=0.0,
)
# the schedule of open_clip: warm-up by whole steps, then half a cosine to 0
clip_cosine = L(ClipCosine)(max_iter="${train.max_iter}", warmup_iters=1000)
# linear warm-up, then down to the same small rate for every parameter group
poly = L(PolyFloor)(
    max_iter="${train.max_iter}", power=0.9, floor=1e-6, warmup_iters=1500, warmup_factor=1e-6
)
