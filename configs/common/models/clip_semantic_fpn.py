"""Semantic FPN on a CLIP ResNet-50, all of it trained: the CLIP-only baseline of DenseCLIP.

DenseCLIP is arXiv 2112.01518. `denseclip.guide` turns a baseline into DenseCLIP.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN

from densedet.clip import create_aligned_visual
from densedet.modeling.backbone import AlignedResNet
from densedet.modeling.meta_arch import Segmentor
from densedet.modeling.sem_seg_head import SegmentationHead
from densedet.vocabulary import Vocabulary

# `grid`: side of the position table; `positions`: how it meets other sizes
clip = dict(
    model="RN50-quickgelu", pretrained="openai", embed_dim=1024, grid=16, positions="bilinear"
)

model = L(Segmentor)(
    backbone=L(FPN)(
        bottom_up=L(AlignedResNet)(
            visual=L(create_aligned_visual)(
                model="${clip.model}",
                pretrained="${clip.pretrained}",
                grid="${clip.grid}",
                positions="${clip.positions}",
            ),
            aligned=False,
        ),
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=256,
        norm="",
    ),
    sem_seg_head=L(SegmentationHead)(
        input_shape={f"p{i}": ShapeSpec(channels=256, stride=2**i) for i in (2, 3, 4, 5)},
        num_classes=150,
        conv_dims=256,
        common_stride=4,
        norm="BN",
        ignore_value=255,
        dropout=0.1,
        mean="valid",
    ),
    vocabulary=L(Vocabulary.named)(name="ade20k_150_denseclip"),
    window="${dataloader.crop_size}",
    window_stride=341,
    tta=None,
    # "scores": from the score map alone, which follows any vocabulary; guided models only
    predict_from="head",
)
