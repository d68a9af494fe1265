"""ICPC's guidance: what it shares with DenseCLIP, prompts of images, levels, losses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from densedet.clip import build_text_encoder
from densedet.clip.tiny import build_tiny_clip
from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.backbone import GuidedBackbone, TimmBackbone
from densedet.modeling.guidance import (
    ICPC,
    AlignGuidedContrast,
    BoxScoreLoss,
    ContextDecoder,
    DenseCLIP,
    PixelScoreLoss,
    PromptCondition,
    PromptedTextEncoder,
)
from densedet.modeling.meta_arch import Segmentor
from densedet.modeling.sem_seg_head import SegmentationHead
from densedet.modeling.sliding_window import windows
from densedet.vocabulary import Vocabulary

EMBED, WIDTH = 32, 16
WORDS = Vocabulary.parse("cat;fire hydrant,hydrant;dog")
VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 16, "width": WIDTH, "heads": 2, "layers": 2}
CHANNELS = {"res2": 3, "res3": 5, "res4": 6, "res5": 7}
LEAVES = ("weight", "bias")
ALL_LEVELS = ("res3", "res4", "res5")


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def prompted(
    vocabulary: Vocabulary = WORDS, class_tokens: int = 6, **kwargs: Any
) -> PromptedTextEncoder:
    torch.manual_seed(0)
    encoder = build_text_encoder(
        build_tiny_clip({"embed_dim": EMBED, "vision_cfg": VISION, "text_cfg": TEXT})
    )
    randomise(encoder)
    return PromptedTextEncoder(
        encoder, vocabulary, num_contexts=3, class_tokens=class_tokens, **kwargs
    )


def looks() -> ContextDecoder:
    torch.manual_seed(1)
    decoder = ContextDecoder(EMBED, 16, 2, layers=1, dropout=0.0)
    randomise(decoder)
    return decoder


def icpc(
    mode: Any = "add",
    vocabulary: Vocabulary = WORDS,
    learned: bool = True,
    text: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ICPC:
    """A model of all levels; ``learned``: its condition has moved away from the start."""
    encoder = prompted(vocabulary, **(text or {}))
    torch.manual_seed(2)
    condition = PromptCondition(mode, embed_dim=EMBED, width=WIDTH)
    if learned:
        randomise(condition)
    settings = {"embed_dim": EMBED, "level_channels": CHANNELS, "gamma": 0.1, **kwargs}
    settings.setdefault("auxiliary", PixelScoreLoss())
    return ICPC(encoder, condition, **settings)


def trunk_output(batch: int = 2, size: int = 2) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Levels "res2" .. "res5", dense and pooled embeddings; not normalised."""
    generator = torch.Generator().manual_seed(3)
    levels = {
        name: torch.randn(batch, c, size * 2**i, size * 2**i, generator=generator)
        for i, (name, c) in zip((3, 2, 1, 0), CHANNELS.items(), strict=True)
    }
    dense = 3 * torch.randn(batch, EMBED, size, size, generator=generator)
    return levels, dense, torch.randn(batch, EMBED, generator=generator)


def some_labels(batch: int = 2, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    cells = torch.randint(0, 3, (batch, side // 16, side // 16), generator=generator)
    labels = cells.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    labels[:, -8:] = 255
    return labels


# ---------------------------------------------------------------------------- beside DenseCLIP


@pytest.mark.parametrize("decoder", [looks, lambda: None])
def test_static_on_the_dense_level_is_denseclip(decoder: Callable[[], Any]) -> None:
    ours = icpc("static", levels=["res5"], decoder=decoder())
    theirs = DenseCLIP(prompted(), decoder(), PixelScoreLoss(), embed_dim=EMBED, gamma=0.1)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes
    theirs.load_state_dict(ours.state_dict())
    assert ours.extra_channels == theirs.extra_channels == {"res5": 3}
    for mode in (True, False):
        found, expected = (model.train(mode)(*trunk_output()) for model in (ours, theirs))
        torch.testing.assert_close(found.scores, expected.scores)
        torch.testing.assert_close(found.text, expected.text)
        assert found.features.keys() == expected.features.keys()
        torch.testing.assert_close(dict(found.features), dict(expected.features))
        losses = [m.losses(g, some_labels()) for m, g in ((ours, found), (theirs, expected))]
        assert losses[0] == losses[1] and list(losses[0]) == ["loss_aux"]


def test_parameters_beyond_denseclip() -> None:
    names = {name for name in icpc().state_dict() if not name.startswith("text.")}
    assert names == {
        *(f"condition.net.{i}.{leaf}" for i in (0, 2) for leaf in LEAVES),
        *(f"embeddings.{level}.{leaf}" for level in ("res3", "res4") for leaf in LEAVES),
    }
    assert icpc().embeddings["res3"].weight.shape == (EMBED, 5, 1, 1)


# ------------------------------------------------------------------------ prompts of every image


@torch.no_grad()
def test_before_training_the_condition_changes_nothing() -> None:
    inputs = trunk_output()
    models = {mode: icpc(mode, learned=False).eval() for mode in ("static", "add")}
    models["add"].load_state_dict(models["static"].state_dict(), strict=False)
    static, added = (models[mode](*inputs) for mode in ("static", "add"))
    torch.testing.assert_close(added.text, static.text, rtol=0, atol=1e-5)
    torch.testing.assert_close(added.scores, static.scores, rtol=0, atol=1e-5)
    # bit for bit on the same path through the text tower, and for one image
    text = models["static"].text
    same = text(text.contexts.expand(2, -1, -1))
    torch.testing.assert_close(added.text, same)


@pytest.mark.parametrize("training", [True, False])
def test_for_one_image_add_starts_exactly_as_static(training: bool) -> None:
    """Everything that the model returns, and its losses."""
    models = [icpc(mode, learned=False).train(training) for mode in ("static", "add")]
    models[1].load_state_dict(models[0].state_dict(), strict=False)
    static, added = (model(*trunk_output(batch=1)) for model in models)
    torch.testing.assert_close(added.text, static.text)
    torch.testing.assert_close(added.scores, static.scores)
    assert added.features.keys() == static.features.keys()
    torch.testing.assert_close(added.features, static.features)
    losses = [m.losses(g, some_labels()[:1]) for m, g in zip(models, (static, added), strict=True)]
    assert losses[0] == losses[1] and losses[0]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["add", "concat", "query"])
def test_every_image_has_text_of_its_own(mode: str) -> None:
    model = icpc(mode).eval()
    features, dense, pooled = trunk_output()
    guided = model(features, dense, pooled)
    assert guided.text.shape == (2, 4, EMBED)
    assert (guided.text[0] - guided.text[1]).abs().max() > 1e-3
    contexts = model.condition(model.text.contexts, dense, pooled)
    for image in range(2):  # the end token moves behind the further context of "concat"
        expected = model.text(contexts[image : image + 1])[0]
        torch.testing.assert_close(guided.text[image], expected, rtol=1e-4, atol=1e-5)
    changed = model(features, dense, torch.stack([pooled[0], -pooled[1]])).text
    torch.testing.assert_close(changed[0], guided.text[0])
    assert (changed[1] - guided.text[1]).abs().max() > 1e-3


@torch.no_grad()
def test_only_the_static_condition_spares_the_text_tower() -> None:
    inputs = trunk_output()
    for mode, repeats in (("static", False), ("add", True)):
        model = icpc(mode).eval()
        first = model(*inputs)
        calls: list[int] = []
        model.text.encoder.ln_final.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        second = model(*inputs)
        assert bool(calls) == repeats and torch.equal(first.scores, second.scores)


@torch.no_grad()
def test_the_decoder_comes_behind_the_condition() -> None:
    features, dense, pooled = trunk_output()
    plain = icpc("add").eval()
    model = icpc("add", decoder=looks()).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    text = plain(features, dense, pooled).text
    memory = torch.cat([pooled[:, None], dense.flatten(2).mT], dim=1)
    expected = text + model.gamma * model.decoder(text, memory)
    torch.testing.assert_close(model(features, dense, pooled).text, expected)
    assert plain.gamma is None and (expected - text).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("mode", ["add", "concat"])
def test_a_shared_prefix_is_exact(mode: str) -> None:
    words = Vocabulary.parse("cat;fire hydrant,hydrant;dining table;a big dog")
    inputs = trunk_output()
    shared, whole = (icpc(mode, words, text={"share_prefix": s}).eval() for s in (True, False))
    whole.load_state_dict(shared.state_dict())
    texts = [model(*inputs).text for model in (shared, whole)]
    assert (texts[0] - texts[1]).abs().max() <= 1e-5 * texts[1].abs().max()


@torch.no_grad()
def test_many_categories_in_chunks() -> None:
    words = Vocabulary.from_names([f"thing {i}" for i in range(847)])
    inputs = trunk_output(size=1)
    whole, chunks = (icpc(vocabulary=words, text={"chunk": c}).eval() for c in (None, 100))
    chunks.load_state_dict(whole.state_dict())
    found, expected = chunks(*inputs), whole(*inputs)
    assert found.scores.shape == (2, 847, 1, 1)
    torch.testing.assert_close(found.text, expected.text, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)


# ----------------------------------------------------------------------------------- the levels


@torch.no_grad()
def test_scores_at_every_level() -> None:
    model = icpc(levels=["res5", "res3", "res4"]).eval()
    features, dense, pooled = trunk_output()
    guided = model(features, dense, pooled)
    assert model.extra_channels == dict.fromkeys(ALL_LEVELS, 3)
    assert list(guided.supervised) == list(ALL_LEVELS)
    for level in ALL_LEVELS:
        maps = dense if level == "res5" else model.embeddings[level](features[level])
        cosines = F.cosine_similarity(maps[:, None], guided.text[..., None, None], dim=2)
        expected = torch.stack([cosines[:, 0], cosines[:, 1:3].amax(dim=1), cosines[:, 3]], dim=1)
        torch.testing.assert_close(guided.supervised[level], expected)
        fused = guided.features[level]
        assert torch.equal(fused[:, : CHANNELS[level]], features[level])
        assert torch.equal(fused[:, CHANNELS[level] :], guided.supervised[level])
    assert guided.scores is guided.supervised["res5"]
    assert guided.finest_scores is guided.supervised["res3"]
    torch.testing.assert_close(guided.finest, model.embeddings["res3"](features["res3"]))
    assert guided.features["res2"] is features["res2"]


@torch.no_grad()
def test_the_mean_of_the_levels() -> None:
    features, dense, pooled = trunk_output()
    apart = icpc().eval()
    model = icpc(fuse="mean").eval()
    model.load_state_dict(apart.state_dict())
    by_level = apart(features, dense, pooled).supervised
    guided = model(features, dense, pooled)
    resized = [F.interpolate(by_level[k], size=(8, 8), mode="bilinear") for k in ALL_LEVELS]
    torch.testing.assert_close(guided.scores, sum(resized) / 3)
    assert model.extra_channels == {"res3": 3} and list(guided.supervised) == ["res3"]
    assert torch.equal(guided.features["res3"][:, 5:], guided.scores)
    assert guided.features["res4"] is features["res4"]
    assert torch.equal(guided.finest_scores, by_level["res3"])
    losses = model.losses(guided, some_labels())
    expected = PixelScoreLoss()(guided.scores / 0.07, some_labels())
    torch.testing.assert_close(losses, expected)


@torch.no_grad()
def test_a_dense_level_that_is_not_the_last() -> None:
    features, dense, pooled = trunk_output()
    dense = F.interpolate(dense, size=(4, 4))
    model = icpc(dense_level="res4", levels=["res3", "res4"]).eval()
    guided = model(features, dense, pooled)
    assert set(model.embeddings) == {"res3"} and guided.scores.shape == (2, 3, 4, 4)
    assert guided.features["res4"].shape[1] == 9 and guided.features["res5"].shape[1] == 7


# ----------------------------------------------------------------------------------- the losses


def test_the_weight_is_shared_among_the_levels() -> None:
    model = icpc(contrast=AlignGuidedContrast(num_positives=64, num_negatives=64)).train()
    guided, labels = model(*trunk_output()), some_labels()
    losses = model.losses(guided, labels)
    assert set(losses) == {*(f"loss_aux_{level}" for level in ALL_LEVELS), "loss_contrast"}
    for level in ALL_LEVELS:
        whole = PixelScoreLoss(weight=0.4)(guided.supervised[level] / 0.07, labels)["loss_aux"]
        torch.testing.assert_close(losses[f"loss_aux_{level}"], whole / 3)
    expected = model.contrast(guided.finest, guided.finest_scores, labels)
    torch.testing.assert_close(losses["loss_contrast"], expected["loss_contrast"])
    assert losses["loss_contrast"] > 0
    assert icpc(auxiliary=None).losses(guided, labels) == {}


def test_the_contrast_waits_for_its_iteration() -> None:
    model = icpc(contrast=AlignGuidedContrast(), contrast_start_iter=7).train()
    guided, labels = model(*trunk_output()), some_labels()
    for start, waits in ((0, True), (6, True), (7, False), (5000, False)):
        with EventStorage(start):
            losses = model.losses(guided, labels)
        assert (losses["loss_contrast"].item() == 0) == waits
        assert losses["loss_contrast"].requires_grad
        assert losses["loss_aux_res5"] > 0


def test_boxes_supervise_the_scores_but_no_contrast() -> None:
    boxes = Boxes(torch.tensor([[0.0, 0.0, 30.0, 30.0]]))
    targets = [Instances((64, 64), gt_boxes=boxes, gt_classes=torch.tensor([k])) for k in (0, 2)]
    model = icpc(auxiliary=BoxScoreLoss()).eval()
    assert set(model.losses(model(*trunk_output()), targets)) == {
        f"loss_aux_{level}" for level in ALL_LEVELS
    }
    model = icpc(auxiliary=BoxScoreLoss(), contrast=AlignGuidedContrast())
    with pytest.raises(ConfigError, match="needs the labels of pixels, not boxes"):
        model.losses(model(*trunk_output()), targets)


@pytest.mark.parametrize("mode", ["static", "add", "concat", "query"])
@pytest.mark.parametrize("fuse", ["concat", "mean"])
def test_gradients(mode: str, fuse: str) -> None:
    model = icpc(mode, fuse=fuse, decoder=looks(), contrast=AlignGuidedContrast()).train()
    features, dense, pooled = trunk_output()
    dense.requires_grad_()
    pooled.requires_grad_()
    sum(model.losses(model(features, dense, pooled), some_labels()).values()).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert "text.contexts" in trained
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert all(p.grad is None for p in model.text.encoder.parameters())
    assert dense.grad.any() and pooled.grad.any()


@pytest.mark.parametrize("iteration", [0, 5000])
def test_autocast_keeps_scores_and_losses_in_full_precision(iteration: int) -> None:
    model = icpc(contrast=AlignGuidedContrast()).train()
    features, dense, pooled = trunk_output()
    with torch.autocast("cpu", dtype=torch.bfloat16), EventStorage(iteration):
        guided = model({k: v.bfloat16() for k, v in features.items()}, dense, pooled)
        losses = model.losses(guided, some_labels())
    assert {s.dtype for s in guided.supervised.values()} == {torch.float32}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert guided.features["res3"].dtype == torch.bfloat16
    sum(losses.values()).backward()
    assert model.text.contexts.grad.isfinite().all()


# -------------------------------------------------------------------------------- whole models


@pytest.fixture
def segmentor(make_guided: Any) -> Callable[..., Segmentor]:
    """``segmentor(mode="add", **kwargs)``: ICPC on a tiny CLIP ResNet below a Semantic FPN."""

    def make(mode: Any = "add", **kwargs: Any) -> Segmentor:
        words = Vocabulary.from_names(["sky", "road", "tree"])
        base = make_guided(words, PixelScoreLoss())
        shapes = base.trunk.output_shape()
        guidance = ICPC(
            base.guidance.text,
            PromptCondition(mode, embed_dim=16, width=16),
            PixelScoreLoss(),
            AlignGuidedContrast(),
            embed_dim=16,
            level_channels={name: shape.channels for name, shape in shapes.items()},
            **kwargs,
        )
        head = SegmentationHead(
            input_shape={f"p{i}": ShapeSpec(channels=8, stride=2**i) for i in (2, 3, 4, 5)},
            num_classes=3,
            conv_dims=8,
            common_stride=4,
            norm="BN",
        )
        backbone = FPN(GuidedBackbone(base.trunk, guidance), list(shapes), 8)
        return Segmentor(backbone=backbone, sem_seg_head=head, window=64, window_stride=43)

    return make


@pytest.mark.parametrize("mode", ["static", "add", "concat", "query"])
@pytest.mark.parametrize("iteration", [0, 5000])
def test_a_training_step(segmentor: Any, mode: str, iteration: int, without_gradient: Any) -> None:
    model = segmentor(mode).train()
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    records = [
        {"image": image.byte(), "sem_seg": labels}
        for image, labels in zip(images, some_labels(), strict=True)
    ]
    with EventStorage(iteration):
        losses = model(records)
    levels = {f"loss_aux_{level}" for level in ALL_LEVELS}
    assert set(losses) == {"loss_sem_seg", "loss_contrast", *levels}
    assert {name for name, loss in losses.items() if loss > 0} == {
        *levels,
        "loss_sem_seg",
        *(["loss_contrast"] if iteration else []),
    }
    sum(losses.values()).backward()
    assert without_gradient(model) == []
    with torch.no_grad():
        result = model.eval()(records[:1])[0]["sem_seg"].full()
    assert result.shape == (3, 64, 64) and result.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("mode", ["static", "add", "concat", "query"])
@pytest.mark.parametrize("source", ["head", "scores"])
def test_windows_are_averaged(segmentor: Any, mode: str, source: str) -> None:
    """Every window has prompts of its own."""
    model = segmentor(mode).eval()
    model.predict_from = source
    image = torch.randint(0, 256, (3, 90, 130), generator=torch.Generator().manual_seed(1))
    result = model([{"image": image.byte()}])[0]["sem_seg"].full()
    total, count = torch.zeros(3, 90, 130), torch.zeros(90, 130)
    parts = windows((90, 130), 64, 43)
    assert len(parts) == 6
    for top, left, bottom, right in parts:
        part = image[:, top:bottom, left:right].byte()
        total[:, top:bottom, left:right] += model([{"image": part}])[0]["sem_seg"].full()
        count[top:bottom, left:right] += 1
    torch.testing.assert_close(result, total / count, rtol=1e-5, atol=1e-5)


def test_it_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = icpc("concat", decoder=ContextDecoder(EMBED, 16, 2)).eval()
        levels = {name: torch.zeros(2, c, 4, 4) for name, c in CHANNELS.items()}
        guided = model(levels, torch.zeros(2, EMBED, 4, 4), torch.zeros(2, EMBED))
    assert guided.scores.is_meta and guided.features["res3"].shape == (2, 8, 4, 4)


# ---------------------------------------------------------------------- vocabularies and errors


@torch.no_grad()
def test_another_vocabulary_changes_the_channels() -> None:
    model = icpc().eval()
    words = Vocabulary.parse("a;b;c;d;e")
    model.set_vocabulary(words)
    guided = model(*trunk_output())
    assert model.vocabulary is words and model.extra_channels == dict.fromkeys(ALL_LEVELS, 5)
    assert guided.features["res4"].shape[1] == 11 and guided.scores.shape[1] == 5


def test_a_further_context_needs_room() -> None:
    tight = {"class_tokens": 5}  # as many as "fire hydrant" has, start and end included
    with pytest.raises(ConfigError, match="4 contexts and a name of 5 tokens .* the 8 positions"):
        icpc("concat", text=tight)
    icpc("add", text=tight)
    short = Vocabulary.parse("cat;dog")
    model = icpc("concat", short, text=tight)
    with pytest.raises(VocabularyError, match="class_tokens raised by 1"):
        model.set_vocabulary(WORDS)
    assert model.vocabulary is short and len(model.text.tokens) == 2
    assert model.eval()(*trunk_output()).scores.shape[1] == 2


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"fuse": "sum"}, "fuse='sum': choose from concat, mean"),
        ({"levels": ["res3", "res4"]}, "'res5' among them, the dense_level"),
        ({"levels": ["res5", "res5"]}, "every level once"),
        ({"levels": ["res5", "res6"]}, r"no channels of levels \['res6'\]"),
        ({"level_channels": None}, r"no channels of levels \['res3', 'res4'\]"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"embed_dim": 24}, "embeds in 32 dimensions, the guidance in 24"),
        ({"decoder": ContextDecoder(EMBED, 16, 2, query_dim=16)}, "query_dim=32, .* 32 and 16"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        icpc(**settings)


def test_a_condition_of_another_size() -> None:
    condition = PromptCondition(embed_dim=EMBED, width=8)
    with pytest.raises(ConfigError, match="embed_dim=32 and width=16, this one has 32 and 8"):
        ICPC(prompted(), condition, None, embed_dim=EMBED, levels=["res5"])


def test_a_trunk_that_does_not_fit() -> None:
    features, dense, pooled = trunk_output()
    with pytest.raises(ValueError, match="needs the dense and the pooled embedding"):
        icpc()(features, None, None)
    with pytest.raises(ConfigError, match=r"\(2, 2\) cells .* res4 of \(4, 4\): choose"):
        icpc(dense_level="res4")(features, dense, pooled)
    with torch.device("meta"):
        trunk = TimmBackbone("resnet18", embed_dim=EMBED)
        narrow = icpc()
        further = icpc(level_channels={"res6": 128}, levels=["res5", "res6"])
    with pytest.raises(ConfigError, match="built for 5 channels of res3, the trunk has 128; give"):
        GuidedBackbone(trunk, narrow)
    with pytest.raises(ConfigError, match=r"ICPC on TimmBackbone: no levels \['res6'\]"):
        GuidedBackbone(trunk, further)
