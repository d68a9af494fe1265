"""F-ViT, the detector of CLIPSelf (arXiv 2310.01403), with EVA02-CLIP-B/16 for OV-COCO."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead

from densedet.clip import VocabularyEmbedder, create_visual
from densedet.modeling.backbone import ClipBackbone, PyramidFPN, TapPyramid
from densedet.modeling.meta_arch import OpenVocabularyRCNN
from densedet.modeling.roi_heads import (
    CosineClassifier,
    OpenVocabularyBoxPredictor,
    OpenVocabularyROIHeads,
    ScoreEnsemble,
    StridePooler,
)
from densedet.vocabulary import Vocabulary

# `pretrained`: an open_clip tag, or a file in the format of open_clip, OpenAI, EVA-CLIP or CLIPSelf
clip = dict(model="EVA02-B-16", pretrained="merged2b_s8b_b131k", embed_dim=512)

model = L(OpenVocabularyRCNN)(
    vocabulary=L(Vocabulary.named)(name="ov_coco"),
    embedder=L(VocabularyEmbedder)(
        model="${clip.model}",
        pretrained="${clip.pretrained}",
        templates="clipself63",
    ),
    backbone=L(PyramidFPN)(
        bottom_up=L(TapPyramid)(
            bottom_up=L(ClipBackbone)(
                visual=L(create_visual)(model="${clip.model}", pretrained="${clip.pretrained}"),
                out_features=["block3", "block5", "block7", "block11"],
                square_size="${dataloader.image_size}",
            ),
            in_features="${.bottom_up.out_features}",
            norm="SyncBN",
        ),
        in_features=["res2", "res3", "res4", "res5"],
        norm="SyncBN",
    ),
    proposal_generator=L(RPN)(
        in_features=["p2", "p3", "p4", "p5", "p6"],
        head=L(StandardRPNHead)(in_channels=256, num_anchors=3, conv_dims=[-1, -1]),
        anchor_generator=L(DefaultAnchorGenerator)(  # 8 x stride
            sizes=[[32], [64], [128], [256], [512]],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
            offset=0.0,
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 2000),
        post_nms_topk=(1000, 1000),
        nms_thresh=0.7,
    ),
    roi_heads=L(OpenVocabularyROIHeads)(
        dense_stride=16,
        batch_size_per_image=512,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=["p2", "p3", "p4", "p5"],
        box_pooler=L(StridePooler)(output_size=7, strides=[4, 8, 16, 32]),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=256, height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=["${clip.embed_dim}", "${clip.embed_dim}"],
            conv_norm="SyncBN",
        ),
        box_predictor=L(OpenVocabularyBoxPredictor)(
            input_shape=L(ShapeSpec)(channels="${clip.embed_dim}"),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            classifier=L(CosineClassifier)(
                embed_dim="${clip.embed_dim}", temperature=50.0, background="text"
            ),
            ensemble=L(ScoreEnsemble)(seen=0.1, unseen=0.8, temperature=75.0),
            background_weight=0.6,
            test_score_thresh=0.01,
            test_nms_thresh=0.4,
            test_topk_per_image=100,
        ),
    ),
    # F-ViT feeds images with the statistics of ImageNet although CLIP was trained with its own;
    # null takes those of the weights
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
