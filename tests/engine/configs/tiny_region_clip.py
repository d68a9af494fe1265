# RegionCLIP of the shipped CLIP on the squares of tiny_data, exported with interpolated weights.
from detectron2.config import LazyCall as L

from densedet.clip import VocabularyEmbedder, create_visual
from densedet.data.region_mapper import RegionMapper
from densedet.engine.interpolation import WeightInterpolation
from densedet.modeling.meta_arch.region_clip import RegionCLIP
from densedet.regions.sampling import BoxRegions
from densedet.vocabulary import Vocabulary

from .tiny_plain import dataloader, lr_multiplier, optimizer, train  # noqa: F401

del dataloader["test"], dataloader["evaluator"]
dataloader.train.mapper = L(RegionMapper)(
    regions=L(BoxRegions)(shuffle=False, enlarge=1.0, min_area=0.0, max_area=float("inf"))
)
model = L(RegionCLIP)(
    student=L(create_visual)(model="densedet-tiny", pretrained="shipped"),
    embedder=L(VocabularyEmbedder)(model="densedet-tiny", pretrained="shipped", templates="single"),
    vocabulary=L(Vocabulary.parse)(text="red ball;green ball;blue ball"),
    student_size=64,
    trainable=4,
    logit_scale=10.0,
)
optimizer.lr = 1e-4
train.max_iter = 3
train.hooks = [
    L(WeightInterpolation)(
        alpha=0.7,
        export=dict(model="densedet-tiny", pretrained="shipped", file_name="clip.safetensors"),
    )
]
