"""Class-agnostic mask branch of F-ViT, for `model.roi_heads`."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead

from densedet.modeling.roi_heads import StridePooler

mask_branch = dict(
    mask_in_features=["p2", "p3", "p4", "p5"],
    mask_pooler=L(StridePooler)(output_size=14, strides=[4, 8, 16, 32]),
    mask_head=L(MaskRCNNConvUpsampleHead)(
        input_shape=ShapeSpec(channels=256, height=14, width=14),
        num_classes=1,
        conv_dims=[256, 256, 256, 256, 256],
        conv_norm="SyncBN",
    ),
)
