"""F-ViT with masks on the tiny CLIP: small enough for two CPU cores, pictures of about 160 px."""

from detectron2.config import LazyCall as L
from torch import nn

from .fvit import clip, model
from .fvit_mask import mask_branch

# no padding to squares; the dense map is not used, see `ensemble` below
model.backbone.bottom_up.bottom_up.update(square_size=0, dense=False)
clip.update(model="densedet-tiny", pretrained="shipped", embed_dim=128)
model.vocabulary.update(name="shapes_world_kind", kind="thing")
model.embedder.update(templates="single", background=None)
model.pixel_mean = model.pixel_std = None  # those of the weights

# Levels of strides 4, 8 and 16 and 64 channels, all from the first block: without distillation the
# tokens of later blocks mix with their surroundings, and unseen classes suffer.
model.backbone.bottom_up.bottom_up.out_features = ["block0"]
model.backbone.bottom_up.update(in_features=["block0"] * 3, scales=[2.0, 1.0, 0.5], norm="GN")
model.backbone.update(
    in_features=["res2", "res3", "res4"], out_channels=64, norm="GN", extra_levels=0
)
model.proposal_generator.in_features = ["p2", "p3", "p4"]
model.proposal_generator.head.update(in_channels=64, num_anchors=1, conv_dims=[-1])
model.proposal_generator.anchor_generator.update(
    sizes=[[18], [34], [60]], aspect_ratios=[1.0], strides=[4, 8, 16]
)
model.proposal_generator.update(
    batch_size_per_image=64, pre_nms_topk=(200, 200), post_nms_topk=(100, 60)
)

heads = model.roi_heads
heads.update(mask_branch)
heads.update(dense_stride=8, batch_size_per_image=64, box_in_features=["p2", "p3", "p4"])
heads.box_pooler.update(output_size=5, strides=[4, 8, 16], base_size=14.0)
# Region embeddings are linear in the pooled features: deeper heads fit the seen classes better and
# name the unseen ones worse. Unseen things lie in the training pictures without a label, and count
# as background there: it weighs little.
heads.box_head = L(nn.Identity)()
heads.box_predictor.input_shape.channels = 64 * 5 * 5
heads.box_predictor.update(background_weight=0.1, class_relu=False, ensemble=None)
heads.box_predictor.classifier.background = "learned"
heads.mask_in_features = heads.box_in_features
heads.mask_pooler.update(output_size=7, strides=[4, 8, 16], base_size=14.0)
heads.mask_head.update(conv_dims=[64, 64, 64], conv_norm="")
heads.mask_head.input_shape.update(channels=64, height=7, width=7)
