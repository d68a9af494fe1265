"""The language bridge: shapes, what depends on what, costs, and where gradients go."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from densedet.clip import build_text_encoder
from densedet.clip.tiny import build_tiny_clip
from densedet.engine.flops import FlopCounter
from densedet.errors import ConfigError
from densedet.modeling.backbone import GuidedBackbone, TimmBackbone
from densedet.modeling.guidance import (
    BoxScoreLoss,
    LanguageBridge,
    PixelScoreLoss,
    PromptedTextEncoder,
)
from densedet.modeling.guidance.bridge_blocks import BridgeAttention, BridgeBlock
from densedet.modeling.meta_arch import Segmentor
from densedet.modeling.sem_seg_head import SegmentationHead
from densedet.vocabulary import Vocabulary

EMBED = 24
VISUAL, TEXT = 16, 12
MODES = ["none", "v2t", "t2v", "two_way", "two_way_full"]
WORDS = Vocabulary.parse("cat;tree;dog")
TOWER = {
    "embed_dim": EMBED,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "width": 16, "heads": 2, "layers": 1},
}


def randomise(module: nn.Module, scale: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def prompted(vocabulary: Vocabulary = WORDS) -> PromptedTextEncoder:
    torch.manual_seed(0)
    encoder = build_text_encoder(build_tiny_clip(TOWER))
    randomise(encoder)
    return PromptedTextEncoder(encoder, vocabulary, num_contexts=3)


def bridge(vocabulary: Vocabulary = WORDS, channels: int = 20, **kwargs: Any) -> LanguageBridge:
    """A small bridge; its gamma is one at which the text matters."""
    text = prompted(vocabulary)
    torch.manual_seed(1)
    settings = {
        "auxiliary": PixelScoreLoss(),
        "embed_dim": EMBED,
        "visual_dim": VISUAL,
        "text_dim": TEXT,
        "gamma": 0.3,
    }
    return LanguageBridge(text, channels=channels, **{**settings, **kwargs})


def levels(batch: int = 2, channels: int = 20, size: tuple[int, int] = (4, 4)) -> dict[str, Tensor]:
    """A "res2" and a "res5"; the others are not looked at."""
    generator = torch.Generator().manual_seed(2)
    rows, columns = size
    return {
        "res2": torch.randn(batch, 5, 8 * rows, 8 * columns, generator=generator),
        "res5": torch.randn(batch, channels, rows, columns, generator=generator),
    }


def fused(guided: Any, channels: int = 20) -> Tensor:
    """The bridge's visual features."""
    return guided.features["res5"][:, channels : channels + VISUAL]


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("channels", "size"), [(20, (3, 5)), (33, (7, 1)), (8, (1, 1))])
def test_shapes(mode: Any, channels: int, size: tuple[int, int]) -> None:
    model = bridge(channels=channels, mode=mode).eval()
    features = levels(channels=channels, size=size)
    guided = model(features, None, None)
    assert guided.scores.shape == (2, 3, *size) and guided.text.shape == (2, 3, EMBED)
    level = guided.features["res5"]
    assert level.shape == (2, channels + VISUAL + 3, *size)
    assert torch.equal(level[:, :channels], features["res5"])
    assert torch.equal(level[:, channels + VISUAL :], guided.scores)
    assert guided.features["res2"] is features["res2"]
    assert model.embed_dim is None and model.extra_channels == {"res5": VISUAL + 3}
    assert level.isfinite().all() and guided.early_scores == []


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_any_number_of_categories_without_touching_a_weight(mode: Any) -> None:
    model = bridge(mode=mode).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    letters = [a + b for a in "abcdefghijklmnopqrstuvwxyz" for b in "bcdfghjklmnpqrstvwxyzaeiouxx"]
    names = [*dict.fromkeys(letters), *(f"{name} box" for name in dict.fromkeys(letters))]
    for count in (1, 19, 150, 847):
        model.set_vocabulary(Vocabulary.from_names(names[:count]))
        guided = model(levels(size=(3, 2)), None, None)
        assert guided.scores.shape == (2, count, 3, 2)
        assert guided.scores.abs().max() <= 1 + 1e-6
        assert model.extra_channels == {"res5": VISUAL + count} and len(model.vocabulary) == count
        assert guided.features["res5"].shape[1] == 20 + VISUAL + count
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_scores_are_cosines_with_the_refined_text(mode: Any) -> None:
    model = bridge(mode=mode).eval()
    guided = model(levels(), None, None)
    dense = model.visual_out(fused(guided))
    cosines = F.cosine_similarity(dense[:, None], guided.text[..., None, None], dim=2)
    torch.testing.assert_close(guided.scores, cosines)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_the_categories_are_a_set(mode: Any) -> None:
    model = bridge(Vocabulary.parse("cat;tree;dog;car"), mode=mode).eval()
    before = model(levels(), None, None)
    model.set_vocabulary(Vocabulary.parse("car;cat;dog;tree"))
    after = model(levels(), None, None)
    order = [1, 3, 2, 0]
    torch.testing.assert_close(after.scores[:, order], before.scores)
    torch.testing.assert_close(after.text[:, order], before.text)
    torch.testing.assert_close(fused(after), fused(before))
    assert not torch.allclose(after.scores, before.scores, atol=1e-2)


@torch.no_grad()
def test_synonyms_reduce_by_maximum() -> None:
    model = bridge(Vocabulary.parse("cat,kitten;dog")).eval()
    merged = model(levels(), None, None)
    assert merged.text.shape == (2, 3, EMBED) and merged.scores.shape == (2, 2, 4, 4)
    model.set_vocabulary(Vocabulary.parse("cat;kitten;dog"))
    apart = model(levels(), None, None).scores
    torch.testing.assert_close(merged.scores[:, 0], apart[:, :2].amax(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_what_depends_on_what(mode: Any) -> None:
    model = bridge(mode=mode).eval()
    features = levels()
    before = model(features, None, None)
    randomise(model.text.encoder)
    other_text = model(features, None, None)
    sees_text = not torch.equal(fused(other_text), fused(before))
    assert sees_text == (mode in ("t2v", "two_way", "two_way_full"))
    features["res5"] = features["res5"].flip(1)
    other_image = model(features, None, None)
    sees_image = not torch.equal(other_image.text, other_text.text)
    assert sees_image == (mode in ("v2t", "two_way", "two_way_full"))


@torch.no_grad()
def test_images_do_not_mix() -> None:
    model = bridge().eval()
    features = levels()
    before = model(features, None, None)
    features["res5"] = torch.stack([features["res5"][0], -features["res5"][1]])
    after = model(features, None, None)
    torch.testing.assert_close(after.scores[0], before.scores[0])
    assert not torch.allclose(after.scores[1], before.scores[1], atol=1e-3)


@torch.no_grad()
def test_without_gamma_the_text_stays() -> None:
    model = bridge(gamma=0.0).eval()
    guided = model(levels(), None, None)
    torch.testing.assert_close(guided.text, model.text().expand(2, -1, -1))
    model.gamma.fill_(0.3)
    assert not torch.allclose(model(levels(), None, None).text, guided.text, atol=1e-2)
    assert LanguageBridge(
        prompted(), None, channels=20, embed_dim=EMBED
    ).gamma.unique().tolist() == pytest.approx([1e-4])


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_block_without_messages_is_the_identity(mode: Any) -> None:
    torch.manual_seed(0)
    block = BridgeBlock(VISUAL, TEXT, mode=mode).eval()
    visual, text = torch.randn(2, VISUAL, 3, 5), torch.randn(2, 7, TEXT)
    assert not torch.equal(block(visual, text)[0], visual)
    block.conv[-1].weight.zero_()
    assert torch.equal(block(visual, text)[0], visual) == (mode in ("none", "v2t"))
    if block.to_image is not None:
        block.to_image.v_proj.weight.zero_()
    assert torch.equal(block(visual, text)[0], visual)


@torch.no_grad()
@pytest.mark.parametrize("projected", ["", "qo", "kv", "qkvo"])
def test_attention_is_that_of_the_formula(projected: str) -> None:
    torch.manual_seed(0)
    layer = BridgeAttention(8, 8, 8, 2, projected)
    queries, memory = torch.randn(2, 5, 8), torch.randn(2, 6, 8)

    def project(name: str, tokens: Tensor) -> Tensor:
        kept = name[0] in projected
        return tokens @ getattr(layer, name).weight.T if kept else tokens

    q = project("q_proj", queries)
    k, v = project("k_proj", memory), project("v_proj", memory)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (q[..., part] @ k[..., part].mT / 4**0.5).softmax(dim=-1)
        heads.append(weights @ v[..., part])
    mixed = torch.cat(heads, dim=2)
    expected = mixed @ layer.out_proj.weight.T if "o" in projected else mixed
    torch.testing.assert_close(layer(queries, memory), expected)
    assert len(list(layer.parameters())) == len(projected)


PROJECTED: dict[Any, tuple[str, str]] = {  # in the attentions to the text and to the image
    "none": ("", ""),
    "v2t": ("qo", ""),
    "t2v": ("", "kv"),
    "two_way": ("qo", "kv"),
    "two_way_full": ("qkvo", "qkvo"),
}


@pytest.mark.parametrize("mode", MODES)
def test_projections_of_the_modes(mode: Any) -> None:
    model = bridge(mode=mode)
    for block in model.blocks:
        for layer, expected in zip((block.to_text, block.to_image), PROJECTED[mode], strict=True):
            names = [] if layer is None else [n for n, _ in layer.named_parameters()]
            found = {n.removeprefix("attention.") for n in names if "_proj" in n}
            full = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
            assert found == {f"{full[letter]}.weight" for letter in expected}
    assert (model.closing is None) == (PROJECTED[mode][0] == "")


@torch.no_grad()
def test_the_order_of_a_block() -> None:
    torch.manual_seed(0)
    block = BridgeBlock(VISUAL, TEXT, heads=2, self_heads=4).eval()
    visual, text = torch.randn(2, VISUAL, 3, 5), torch.randn(2, 7, TEXT)
    found_visual, found_text = block(visual, text)
    to_text, layer, to_image = block.to_text, block.transformer, block.to_image
    text = to_text.norm(text + to_text.attention(text, visual.flatten(2).mT))
    text = layer.norm1(text + layer.attention(text, text))
    text = layer.norm2(text + layer.ffn(text))
    visual = visual + block.conv(visual)
    tokens = visual.flatten(2).mT
    tokens = tokens + to_image(tokens, text)
    torch.testing.assert_close(found_text, text)
    torch.testing.assert_close(found_visual, tokens.mT.unflatten(2, (3, 5)))


@torch.no_grad()
def test_the_cnn_is_an_inverted_bottleneck_with_norms() -> None:
    torch.manual_seed(0)
    block = BridgeBlock(8, TEXT, expansion=3)
    maps = torch.randn(2, 8, 3, 5)
    convs = [layer.weight for layer in block.conv]
    assert [tuple(w.shape) for w in convs] == [(24, 8, 1, 1), (24, 1, 3, 3), (8, 24, 1, 1)]
    expected = F.relu(F.batch_norm(F.conv2d(maps, convs[0]), None, None, training=True))
    expected = F.conv2d(expected, convs[1], padding=1, groups=24)
    expected = F.relu(F.batch_norm(expected, None, None, training=True))
    expected = F.batch_norm(F.conv2d(expected, convs[2]), None, None, training=True)
    torch.testing.assert_close(block.conv(maps), expected)


@pytest.mark.parametrize(
    ("width", "text_width", "side", "steps", "total"),
    [
        (512, 256, 16, {"a": 79, "self": 51, "ffn": 39, "c": 271, "d": 79}, 518),
        (256, 256, 16, {"a": 39, "self": 51, "ffn": 39, "c": 68, "d": 39}, 237),
        (128, 128, 16, {"a": 15, "self": 16, "ffn": 10, "c": 17, "d": 15}, 72),
        (256, 256, 32, {"a": 98, "self": 51, "ffn": 39, "c": 273, "d": 98}, 560),
    ],
)
def test_costs(width: int, text_width: int, side: int, steps: Any, total: int) -> None:
    """Millions of multiply-adds for 150 names; what the norms add counts for the total alone."""
    with torch.device("meta"), torch.no_grad(), FlopCounter() as counter:
        block = BridgeBlock(width, text_width).eval()
        norms = [m for m in block.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
        parts: dict[str, list[nn.Module]] = {
            "a": [block.to_text],
            "self": [block.transformer.attention],
            "ffn": [block.transformer.ffn],
            "c": [block.conv],
            "d": [block.to_image],
            "norms": norms,
        }
        with counter.modules(parts):
            block(torch.zeros(1, width, side, side), torch.zeros(1, 150, text_width))
    found = {name: counter.flops[name] / 1e6 for name in steps}
    rounding = 0.5  # of the expected millions
    assert found == {name: pytest.approx(v, rel=0.02, abs=rounding) for name, v in steps.items()}
    assert counter.total / 1e6 == pytest.approx(total, rel=0.02)
    assert counter.flops["norms"] > 0 and set(counter.flops) == set(parts)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("closing", [True, False])
def test_gradients(mode: Any, closing: bool) -> None:
    model = bridge(mode=mode, closing=closing).train()
    features = levels()
    features["res5"].requires_grad_()
    guided = model(features, None, None)
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    loss = model.losses(guided, labels)["loss_aux"] + guided.features["res5"].square().mean()
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert "text.contexts" in trained and "gamma" in trained
    assert not any(name.startswith("text.encoder.") for name in trained)
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in model.text.encoder.parameters())
    assert features["res5"].grad.abs().sum() > 0


@torch.no_grad()
def test_text_is_kept_in_evaluation(count_calls: Any) -> None:
    model = bridge().eval()
    calls = count_calls(model.text.encoder.ln_final)
    first = model(levels(), None, None)
    assert len(calls) == 1
    second = model(levels(), None, None)
    assert len(calls) == 1 and torch.equal(second.scores, first.scores)
    model.text.train().eval()  # training mode drops the embeddings
    again = model(levels(), None, None)
    assert len(calls) == 2 and torch.equal(again.scores, first.scores)


def test_deep_supervision_averages_over_the_blocks() -> None:
    model = bridge(blocks=3, deep_supervision=True, temperature=0.1).train()
    guided = model(levels(), None, None)
    assert [scores.shape for scores in guided.early_scores] == [guided.scores.shape] * 2
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    found = model.losses(guided, labels)
    maps = [*guided.early_scores, guided.scores]
    each = [PixelScoreLoss()(scores / 0.1, labels)["loss_aux"] for scores in maps]
    assert found.keys() == {"loss_aux"}
    torch.testing.assert_close(found["loss_aux"], sum(each) / 3)
    assert len({loss.item() for loss in each}) == 3
    assert model.eval()(levels(), None, None).early_scores == []


@torch.no_grad()
def test_losses() -> None:
    model = bridge().eval()
    guided = model(levels(), None, None)
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    expected = PixelScoreLoss()(guided.scores / 0.07, labels)
    torch.testing.assert_close(model.losses(guided, labels), expected)
    assert bridge(auxiliary=None).losses(guided, labels) == {}
    boxes = Boxes(torch.tensor([[0.0, 0.0, 60.0, 60.0]]))
    targets = [Instances((128, 128), gt_boxes=boxes, gt_classes=torch.tensor([k])) for k in (0, 2)]
    expected = BoxScoreLoss()(guided.scores / 0.07, targets, (32, 32))
    found = bridge(auxiliary=BoxScoreLoss()).losses(guided, targets)
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_softmax_in_full_precision_under_autocast() -> None:
    """Logits of some hundreds are apart by 2 in bfloat16: its softmax would be far off."""
    torch.manual_seed(0)
    layer = BridgeAttention(32, 32, 32, 1, "")
    queries, memory = 5 * torch.randn(1, 6, 32), 5 * torch.randn(1, 40, 32)
    queries, memory = queries.bfloat16(), memory.bfloat16()
    weights = (queries.double() @ memory.double().mT / 32**0.5).softmax(dim=-1)
    expected = weights @ memory.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(queries, memory)
    rounded = (queries.float() @ memory.float().mT / 32**0.5).bfloat16().softmax(dim=-1)
    assert found.dtype == torch.bfloat16
    error = (found.double() - expected).abs().max()
    assert error < 0.02 * expected.abs().max()
    assert error < 0.5 * (rounded.double() @ memory.double() - expected).abs().max()


def test_autocast_keeps_scores_in_full_precision() -> None:
    model = bridge().train()
    features = {name: level.bfloat16() for name, level in levels().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guided = model(features, None, None)
    assert guided.scores.dtype == torch.float32
    assert guided.features["res5"].dtype == torch.bfloat16
    guided.scores.sum().backward()
    assert torch.isfinite(model.text.contexts.grad).all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mode": "both"}, "mode='both': choose from none, v2t, t2v, two_way, two_way_full"),
        ({"embed_dim": 32}, "embeds in 24 dimensions, the language bridge in 32"),
        ({"heads": 3}, "3 heads do not divide an attention 16 wide"),
        ({"self_heads": 5}, "5 heads do not divide an attention 12 wide"),
        ({"auxiliary": None, "deep_supervision": True}, "deep_supervision needs an auxiliary loss"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        bridge(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("channels", 0), ("visual_dim", 0), ("text_dim", 0), ("blocks", 0), ("blocks", -1)),
        *(("heads", 0), ("heads", -1), ("self_heads", 0), ("ffn_ratio", 0), ("expansion", 0)),
        *(("temperature", 0), ("temperature", float("nan"))),
    ],
)
def test_numbers_that_are_not_positive(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^language bridge {name}={value}: it must be above 0$"):
        bridge(**{name: value})


@pytest.mark.parametrize(
    "name", ["visual_dim", "text_dim", "heads", "self_heads", "expansion", "ffn_ratio"]
)
def test_numbers_of_a_block_that_are_not_positive(name: str) -> None:
    settings: dict[str, Any] = {"visual_dim": VISUAL, "text_dim": TEXT, name: 0}
    with pytest.raises(ConfigError, match=f"^language bridge {name}=0: it must be above 0$"):
        BridgeBlock(**settings)


def test_backbones_that_do_not_fit() -> None:
    with torch.device("meta"):
        trunk = TimmBackbone("resnet18", embed_dim=None)
        guidance = bridge(level="res6")
        other = bridge(channels=64)
    with pytest.raises(ConfigError, match="LanguageBridge on TimmBackbone: no levels .'res6'."):
        GuidedBackbone(trunk, guidance)
    with pytest.raises(ConfigError, match="built for 64 channels of res5, the trunk has 512; give"):
        GuidedBackbone(trunk, other)


@pytest.mark.parametrize("norm", ["BN", "GN", ""])
def test_runs_on_the_meta_device(norm: str) -> None:
    with torch.device("meta"):
        model = bridge(norm=norm, visual_dim=32).eval()
        guided = model({"res5": torch.zeros(2, 20, 4, 4)}, None, None)
    assert guided.scores.is_meta and guided.features["res5"].shape == (2, 20 + 32 + 3, 4, 4)


def segmentor(**kwargs: Any) -> Segmentor:
    """A ResNet-18 with the bridge, windows of 64 pixels every 43."""
    torch.manual_seed(0)
    trunk = TimmBackbone("resnet18", embed_dim=None)
    guided = GuidedBackbone(trunk, bridge(channels=512, **kwargs))
    shapes = {f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in (2, 3, 4, 5)}
    head = SegmentationHead(
        input_shape=shapes, num_classes=3, conv_dims=8, common_stride=4, norm="BN"
    )
    neck = FPN(guided, ["res2", "res3", "res4", "res5"], 8)
    return Segmentor(backbone=neck, sem_seg_head=head, window=64, window_stride=43)


@pytest.mark.parametrize("mode", ["none", "two_way"])
def test_a_training_step_on_a_lightweight_backbone(mode: Any, without_gradient: Any) -> None:
    model = segmentor(mode=mode, deep_supervision=True).train()
    shape = model.guided.output_shape()["res5"]
    assert shape == ShapeSpec(channels=512 + VISUAL + 3, stride=32)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    labels = torch.randint(0, 3, (2, 64, 64))
    records = [
        {"image": image, "sem_seg": label} for image, label in zip(images, labels, strict=True)
    ]
    losses = model(records)
    assert set(losses) == {"loss_sem_seg", "loss_aux"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        result = model.eval()([{"image": images[0][:, :50, :70]}])[0]["sem_seg"].full()
    assert result.shape == (3, 50, 64) and result.isfinite().all()


@torch.no_grad()
def test_windows_of_a_picture_are_averaged(count_calls: Any) -> None:
    model = segmentor().eval()
    image = torch.randint(0, 256, (3, 90, 130), dtype=torch.uint8)
    calls = count_calls(model.guided.guidance.text.encoder.ln_final)
    found = model([{"image": image}])[0]["sem_seg"].full()
    pixels = ((image - model.pixel_mean) / model.pixel_std)[None]
    total, count = torch.zeros(3, 90, 130), torch.zeros(90, 130)
    for top in (0, 90 - 64):
        for left in (0, 43, 130 - 64):
            part = (..., slice(top, top + 64), slice(left, left + 64))
            total[part] += model.sem_seg_head(model.backbone(pixels[part]))[0][0]
            count[part] += 1
    assert count.min() == 1 and count.max() == 4
    torch.testing.assert_close(found, total / count)
    assert len(calls) == 1  # the text, once for all windows
