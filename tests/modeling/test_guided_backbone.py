"""A trunk with guidance as one backbone."""

from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.structures import Instances
from torch import Tensor, nn

from densedet.clip import build_text_encoder
from densedet.clip.factory import build_visual
from densedet.clip.tiny import build_tiny_clip
from densedet.errors import ConfigError
from densedet.modeling.backbone.aligned import AlignedResNet
from densedet.modeling.backbone.guided import GuidedBackbone, find_guided
from densedet.modeling.guidance import (
    ContextDecoder,
    DenseCLIP,
    Guidance,
    Guided,
    PixelScoreLoss,
    PromptedTextEncoder,
)
from densedet.vocabulary import Vocabulary

EMBED = 24
WORDS = Vocabulary.parse("cat;dog;tree")
CONFIG = {
    "embed_dim": EMBED,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
    "quick_gelu": True,
}


def make_guidance(embed: int = EMBED, **kwargs: Any) -> DenseCLIP:
    torch.manual_seed(0)
    text = build_text_encoder(build_tiny_clip({**CONFIG, "embed_dim": embed}))
    prompts = PromptedTextEncoder(text, WORDS, num_contexts=3)
    decoder = ContextDecoder(embed, 16, 2, layers=1)
    return DenseCLIP(prompts, decoder, PixelScoreLoss(), embed_dim=embed, **kwargs)


def make_trunk(aligned: bool = True) -> AlignedResNet:
    torch.manual_seed(1)
    model = build_tiny_clip(CONFIG)
    model.visual.init_parameters()
    with torch.no_grad():
        for module in model.visual.modules():
            if isinstance(module, nn.BatchNorm2d):  # open_clip starts the last one of a block at 0
                module.weight.fill_(1)
    return AlignedResNet(build_visual(model), aligned=aligned)


@pytest.fixture
def backbone() -> GuidedBackbone:
    return GuidedBackbone(make_trunk(), make_guidance()).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_levels_after_guidance(backbone: GuidedBackbone, images: Tensor) -> None:
    plain = backbone.trunk(images)
    features = backbone(images)
    shapes = backbone.output_shape()
    assert list(features) == list(shapes) == ["res2", "res3", "res4", "res5"]
    for name, shape in shapes.items():
        size = (64 // shape.stride, 96 // shape.stride)
        assert features[name].shape == (2, shape.channels, *size)
    before = backbone.trunk.output_shape()
    assert shapes["res5"].channels == before["res5"].channels + 3
    assert shapes["res4"] == before["res4"]
    guided = backbone.guidance(
        {name: plain[name] for name in shapes}, plain["clip_dense"], plain["clip_pooled"]
    )
    assert torch.equal(guided.features["res5"], features["res5"])
    assert torch.equal(backbone.guide(images).scores, guided.scores)
    assert guided.scores.std() > 1e-3


def test_constraints_are_the_trunks(backbone: GuidedBackbone) -> None:
    assert backbone.size_divisibility == backbone.trunk.size_divisibility == 32
    assert backbone.padding_constraints == backbone.trunk.padding_constraints


@torch.no_grad()
def test_recording(backbone: GuidedBackbone, images: Tensor) -> None:
    backbone(images)
    with backbone.recording() as record:
        assert record == []
        features = backbone(images)
        with backbone.recording() as inner:
            backbone(images[:1])
        backbone(images)
    backbone(images)
    assert len(record) == 2 and len(inner) == 1
    assert record[0].features is features and record[0].scores.shape == (2, 3, 2, 3)
    with pytest.raises(KeyError), backbone.recording() as record:
        raise KeyError
    backbone(images)
    assert record == []


def test_below_an_fpn(backbone: GuidedBackbone, images: Tensor) -> None:
    fpn = FPN(backbone, ["res3", "res4", "res5"], out_channels=8)
    fpn.train()
    assert find_guided(fpn) is backbone is find_guided(backbone)
    assert find_guided(make_trunk()) is None
    with backbone.recording() as record:
        levels = fpn(images)
    labels = torch.randint(0, 3, (2, 64, 96), generator=torch.Generator().manual_seed(0))
    loss = backbone.guidance.losses(record[0], labels)["loss_aux"]
    (loss + sum(level.square().mean() for level in levels.values())).backward()
    for name, parameter in fpn.named_parameters():
        if ".text.encoder." in name:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_trunk_without_embeddings() -> None:
    with pytest.raises(ConfigError, match="DenseCLIP on AlignedResNet: .* aligned=True"):
        GuidedBackbone(make_trunk(aligned=False), make_guidance())


def test_embeddings_of_another_size() -> None:
    with pytest.raises(ConfigError, match="trunk embeds in 24 dimensions, the guidance in 32"):
        GuidedBackbone(make_trunk(), make_guidance(32))


def test_a_level_that_the_trunk_lacks() -> None:
    with pytest.raises(ConfigError, match=r"no levels \['res6'\]; the trunk has res2, res3"):
        GuidedBackbone(make_trunk(), make_guidance(fused_level="res6"))


def test_kept_text_falls_when_the_whole_backbone_is_loaded(
    backbone: GuidedBackbone, images: Tensor
) -> None:
    fpn = FPN(backbone, ["res5"], out_channels=8).eval()
    seen: list[int] = []
    tower = backbone.guidance.text.encoder.ln_final
    tower.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    with torch.no_grad():
        fpn(images)
        fpn(images[:1])
        assert seen == [3]
        fpn.load_state_dict(fpn.state_dict())
        fpn(images)
        assert seen == [3, 3]
        fpn.train()
        fpn.eval()
        fpn(images)
    assert seen == [3, 3, 3]


class Doubled(Guidance):
    """Reads the levels alone and changes two of them."""

    embed_dim = None

    def __init__(self) -> None:
        super().__init__()
        self.set_vocabulary(WORDS)

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    @property
    def extra_channels(self) -> dict[str, int]:
        return {"res4": 3, "res5": 5}

    def forward(
        self, features: dict[str, Tensor], dense: Tensor | None, pooled: Tensor | None
    ) -> Guided:
        assert dense is None and pooled is None
        doubled = {k: torch.cat([features[k], features[k]], dim=1) for k in self.extra_channels}
        return Guided({**features, **doubled}, features["res5"][:, :3], features["res5"][:, 0])

    def losses(self, guided: Guided, targets: Tensor | list[Instances]) -> dict[str, Tensor]:
        return {}


class Pools(Backbone):
    """Two levels of averages, without embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self._out_features = ["res4", "res5"]
        self._out_feature_channels = {"res4": 3, "res5": 5}
        self._out_feature_strides = {"res4": 16, "res5": 32}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        res5 = nn.functional.avg_pool2d(images, 32)
        return {"res4": nn.functional.avg_pool2d(images, 16), "res5": res5[:, [0, 1, 2, 0, 1]]}


def test_guidance_of_levels_alone(images: Tensor) -> None:
    backbone = GuidedBackbone(Pools(), Doubled())
    shapes = backbone.output_shape()
    assert shapes == {
        "res4": ShapeSpec(channels=6, stride=16),
        "res5": ShapeSpec(channels=10, stride=32),
    }
    for name, level in backbone(images).items():
        assert level.shape[1] == shapes[name].channels
