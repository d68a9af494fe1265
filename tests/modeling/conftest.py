"""Tiny CLIP towers and detectors of every shape that F-ViT has: patches of 16 and 14, ResNet."""

import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from densedet.clip import ClassEmbeddings, ClipVisual, build_text_encoder, build_visual
from densedet.clip.tiny import build_tiny_clip
from densedet.modeling.backbone import (
    AlignedResNet,
    ClipBackbone,
    GuidedBackbone,
    PyramidFPN,
    TapPyramid,
)
from densedet.modeling.guidance import ContextDecoder, DenseCLIP, PromptedTextEncoder
from densedet.modeling.meta_arch import OpenVocabularyRCNN
from densedet.modeling.roi_heads import (
    CosineClassifier,
    OpenVocabularyBoxPredictor,
    OpenVocabularyROIHeads,
    ScoreEnsemble,
    StridePooler,
)
from densedet.modeling.rpn import NormRPNHead
from densedet.modeling.sliding_window import windows
from densedet.vocabulary import Vocabulary

EMBED = 24
CHANNELS = 32
BASE_SIZE = 14.0  # of the poolers: small images use every level
TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
TOWERS = {
    "b16": {"image_size": 64, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16},
    "l14": {"image_size": 56, "layers": 4, "width": 32, "head_width": 16, "patch_size": 14},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
}
GUIDED = {
    "embed_dim": 16,
    "vision_cfg": TOWERS["resnet"],
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def make_visual() -> Callable[[str], ClipVisual]:
    """``make_visual("b16" | "l14" | "resnet")``: a tiny tower with random weights, D = 24."""

    def make(kind: str) -> ClipVisual:
        torch.manual_seed(0)
        config = {"embed_dim": EMBED, "vision_cfg": TOWERS[kind], "text_cfg": TEXT}
        return build_visual(build_tiny_clip(config)).eval()

    return make


@pytest.fixture
def make_backbone(make_visual: Any) -> Callable[..., ClipBackbone]:
    """``make_backbone(kind, **kwargs)``: all blocks of a ViT, or all stages of a ResNet, tapped."""

    def make(kind: str, **kwargs: Any) -> ClipBackbone:
        taps = "layer{}" if kind == "resnet" else "block{}"
        first = 1 if kind == "resnet" else 0
        names = [taps.format(i + first) for i in range(4)]
        return ClipBackbone(make_visual(kind), names, **kwargs)

    return make


@pytest.fixture
def make_pyramid(make_backbone: Any) -> Callable[..., PyramidFPN]:
    """``make_pyramid(kind, norm="GN", **kwargs)``: FPN of 32 channels with five levels."""

    def make(kind: str, norm: str = "GN", **kwargs: Any) -> PyramidFPN:
        backbone = make_backbone(kind, **kwargs)
        names = backbone.visual.tap_names[-4:]
        if kind != "resnet":
            backbone = TapPyramid(backbone, names, norm=norm)
            names = ["res2", "res3", "res4", "res5"]
        return PyramidFPN(backbone, names, out_channels=CHANNELS, norm=norm)

    return make


@pytest.fixture
def make_guided() -> Callable[..., GuidedBackbone]:
    """``make_guided(words, auxiliary, trunk=None, decoder=True, **kwargs)``: DenseCLIP with E = 16.

    On a tiny CLIP ResNet or another trunk; ``kwargs`` are those of `DenseCLIP`.
    """

    def make(
        words: Vocabulary,
        auxiliary: nn.Module | None,
        trunk: Backbone | None = None,
        decoder: bool = True,
        **kwargs: Any,
    ) -> GuidedBackbone:
        torch.manual_seed(0)
        clip = build_tiny_clip(GUIDED)
        for name, weight in clip.visual.named_parameters():
            if name.endswith("bn3.weight"):  # open_clip starts them at zero
                nn.init.ones_(weight)
        visual: Any = build_visual(clip)
        text = PromptedTextEncoder(build_text_encoder(clip), words, num_contexts=4, class_tokens=5)
        looks = ContextDecoder(16, width=16, heads=2, layers=1) if decoder else None
        guidance = DenseCLIP(text, looks, auxiliary, embed_dim=16, **kwargs)
        return GuidedBackbone(trunk or AlignedResNet(visual), guidance)

    return make


@pytest.fixture
def without_gradient() -> Callable[[nn.Module], list[str]]:
    """``without_gradient(model)``: trainable parameters that a backward pass did not reach."""

    def find(model: nn.Module) -> list[str]:
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        assert trainable
        return [name for name, parameter in trainable if parameter.grad is None]

    return find


def embed(name: str, dimension: int = EMBED) -> Tensor:
    """A unit vector that belongs to a word."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return F.normalize(torch.randn(dimension, generator=generator), dim=0)


class WordEmbedder:
    """An embedder with a fixed random vector for every word; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Vocabulary] = []

    def __call__(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        self.asked.append(vocabulary)
        vectors = torch.stack([embed(name) for name in vocabulary.synonyms])
        return ClassEmbeddings(vectors, torch.tensor(vocabulary.groups), embed("background"))


@pytest.fixture
def embedder() -> WordEmbedder:
    """Word vectors of dimension 24; ``.asked`` lists the vocabularies that were embedded."""
    return WordEmbedder()


@pytest.fixture
def words() -> Vocabulary:
    """Three classes, the last unseen; the first has two synonyms."""
    return Vocabulary.parse("cat,kitten;dog;zebra").with_unseen(["zebra"])


@pytest.fixture
def make_predictor() -> Callable[..., OpenVocabularyBoxPredictor]:
    """``make_predictor(channels=24, background="text", **kwargs)``."""

    def make(
        channels: int = EMBED, background: str = "text", temperature: float = 50.0, **kwargs: Any
    ) -> OpenVocabularyBoxPredictor:
        return OpenVocabularyBoxPredictor(
            ShapeSpec(channels=channels),
            box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
            classifier=CosineClassifier(EMBED, temperature, background),
            **kwargs,
        )

    return make


def _proposal_generator(strides: list[float], names: list[str]) -> RPN:
    return RPN(
        in_features=names,
        head=NormRPNHead(norm="GN", in_channels=CHANNELS, num_anchors=3, conv_dims=[-1, -1]),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[8 * s] for s in strides],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=strides,
            offset=0.0,
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(50, 50),
        post_nms_topk=(20, 20),
        nms_thresh=0.7,
    )


def _mask_branch(strides: list[float], names: list[str], norm: str) -> dict[str, Any]:
    return {
        "mask_in_features": names,
        "mask_pooler": StridePooler(7, strides, BASE_SIZE),
        "mask_head": MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=CHANNELS, height=7, width=7),
            num_classes=1,
            conv_dims=[CHANNELS, CHANNELS],
            conv_norm=norm,
        ),
    }


@pytest.fixture
def make_rcnn(
    make_pyramid: Any, make_predictor: Any, embedder: WordEmbedder, words: Vocabulary
) -> Callable[..., OpenVocabularyRCNN]:
    """``make_rcnn(kind, mask_norm="GN", ...)``: a whole detector; ``model.embedder`` is
    ``embedder``."""

    def make(
        kind: str = "b16",
        mask_norm: str | None = "GN",
        ensemble: ScoreEnsemble | None = None,
        backbone: dict[str, Any] | None = None,
        **predictor: Any,
    ) -> OpenVocabularyRCNN:
        torch.manual_seed(1)
        pyramid = make_pyramid(kind, **(backbone or {}))
        shapes = pyramid.output_shape()
        levels = [name for name in shapes if name != "vlm"]
        strides = [float(shapes[name].stride) for name in levels]
        masks = {} if mask_norm is None else _mask_branch(strides[:4], levels[:4], mask_norm)
        return OpenVocabularyRCNN(
            vocabulary=words,
            embedder=embedder,
            backbone=pyramid,
            proposal_generator=_proposal_generator(strides, levels),
            roi_heads=OpenVocabularyROIHeads(
                dense_stride=shapes["vlm"].stride,
                batch_size_per_image=16,
                positive_fraction=0.25,
                proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
                box_in_features=levels[:4],
                box_pooler=StridePooler(5, strides[:4], BASE_SIZE),
                box_head=FastRCNNConvFCHead(
                    ShapeSpec(channels=CHANNELS, height=5, width=5),
                    conv_dims=[CHANNELS],
                    fc_dims=[EMBED],
                    conv_norm="GN",
                ),
                box_predictor=make_predictor(
                    ensemble=ensemble or ScoreEnsemble(0.1, 0.8, 75.0), **predictor
                ),
                **masks,
            ),
        )

    return make


@pytest.fixture
def make_record() -> Callable[..., dict[str, Any]]:
    """``make_record(height, width, boxes, classes, seed=0)``: a mapped training record."""

    def make(
        height: int,
        width: int,
        boxes: list[list[float]],
        classes: list[int],
        seed: int = 0,
    ) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[int(y0) : int(y1), int(x0) : int(x1)] = True
        instances.gt_masks = BitMasks(masks)
        return {"image": image, "instances": instances, "height": height, "width": width}

    return make


@pytest.fixture
def count_calls() -> Callable[[nn.Module], list[int]]:
    """``count_calls(module)``: a list that grows by the batch size at every forward pass."""

    def count(module: nn.Module) -> list[int]:
        batches: list[int] = []
        module.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
        return batches

    return count


@pytest.fixture
def train_step():
    """``train_step(model, records, seed)``: the losses of a step, after their backward pass."""

    def step(model, records, seed=0):
        torch.manual_seed(seed)
        with EventStorage():
            losses = model.train()(records)
        model.zero_grad()
        sum(losses.values()).backward()
        return losses

    return step


@pytest.fixture
def slide_by_hand() -> Callable[..., Tensor]:
    """The mean of the logits [B, K, H, W] of all windows, each at the size of its pixels."""

    def slide(images: Tensor, predict: Callable[[Tensor], Tensor], side: int, step: int) -> Tensor:
        total, count = torch.tensor(0.0), torch.zeros(images.shape[-2:])
        for top, left, bottom, right in windows(tuple(images.shape[-2:]), side, step):
            rows, columns = slice(top, bottom), slice(left, right)
            logits = predict(images[..., rows, columns])
            total = total if total.ndim else logits.new_zeros(*logits.shape[:2], *count.shape)
            total[..., rows, columns] += logits
            count[rows, columns] += 1
        return total / count

    return slide
