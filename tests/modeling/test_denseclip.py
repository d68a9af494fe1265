"""DenseCLIP's guidance: scores, what they depend on, and where gradients go."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from densedet.clip import build_text_encoder
from densedet.clip.tiny import build_tiny_clip
from densedet.errors import ConfigError
from densedet.modeling.guidance import (
    BoxScoreLoss,
    ContextDecoder,
    DenseCLIP,
    PixelScoreLoss,
    PromptedTextEncoder,
)
from densedet.vocabulary import Vocabulary

EMBED, WIDTH = 24, 16
WORDS = Vocabulary.parse("cat;fire hydrant,hydrant;dog")
VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 16, "width": WIDTH, "heads": 2, "layers": 1}


def randomise(module: nn.Module, scale: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def prompted(vocabulary: Vocabulary = WORDS) -> PromptedTextEncoder:
    torch.manual_seed(0)
    config = {"embed_dim": EMBED, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True}
    encoder = build_text_encoder(build_tiny_clip(config))
    randomise(encoder)
    return PromptedTextEncoder(encoder, vocabulary, num_contexts=3)


def denseclip(vocabulary: Vocabulary = WORDS, decoder: Any = "fits", **kwargs: Any) -> DenseCLIP:
    """A model with random weights, the decoder's too, and a gamma at which it matters."""
    text = prompted(vocabulary)
    torch.manual_seed(1)
    if decoder == "fits":
        pre = kwargs.get("prompting") == "pre"
        query_dim = WIDTH if pre else EMBED
        decoder = ContextDecoder(EMBED, 16, 2, layers=1, dropout=0.0, query_dim=query_dim)
        randomise(decoder)
    settings = {"auxiliary": PixelScoreLoss(), "embed_dim": EMBED, "gamma": 0.1, **kwargs}
    return DenseCLIP(text, decoder, **settings)


def trunk_output(batch: int = 2, size: int = 4) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Levels "res2" .. "res5" of 5 channels, dense and pooled embeddings; not normalised."""
    generator = torch.Generator().manual_seed(2)
    sides = {f"res{level}": size * 2 ** (5 - level) for level in (2, 3, 4, 5)}
    levels = {k: torch.randn(batch, 5, n, n, generator=generator) for k, n in sides.items()}
    dense = 3 * torch.randn(batch, EMBED, size, size, generator=generator)
    pooled = torch.randn(batch, EMBED, generator=generator)
    return levels, dense, pooled


@torch.no_grad()
def test_scores_and_fused_level() -> None:
    model = denseclip(Vocabulary.parse("cat;tree;dog")).eval()
    features, dense, pooled = trunk_output()
    guided = model(features, dense, pooled)
    memory = torch.cat([pooled[:, None], dense.flatten(2).mT], dim=1)
    plain = model.text().expand(2, -1, -1)
    text = plain + model.gamma * model.decoder(plain, memory)
    torch.testing.assert_close(guided.text, text)
    cosines = F.cosine_similarity(dense[:, None], text[..., None, None], dim=2)
    torch.testing.assert_close(guided.scores, cosines)
    assert model.extra_channels == {"res5": 3}
    fused = guided.features["res5"]
    assert torch.equal(fused[:, :5], features["res5"])
    assert torch.equal(fused[:, 5:], guided.scores)
    assert all(guided.features[name] is features[name] for name in ("res2", "res3", "res4"))


@torch.no_grad()
def test_scaled_scores_at_another_level() -> None:
    model = denseclip(fuse_scaled=True, fused_level="res4").eval()
    features, _, pooled = trunk_output()
    _, dense, _ = trunk_output(size=8)
    guided = model(features, dense, pooled)
    assert model.extra_channels == {"res4": 3}
    torch.testing.assert_close(guided.features["res4"][:, 5:], guided.scores / 0.07)
    assert guided.scores.abs().max() <= 1 + 1e-6
    assert guided.features["res5"] is features["res5"]


@torch.no_grad()
def test_scores_lie_in_the_range_of_cosines() -> None:
    model = denseclip().eval()
    features, _, pooled = trunk_output()
    aligned = model.text()[0, :, :, None, None].expand(-1, -1, 4, 4)
    dense = torch.cat([1000 * aligned[:1], -aligned[:1]])
    model.gamma.zero_()
    guided = model(features, dense, pooled)
    assert guided.scores.abs().max() <= 1 + 1e-6
    assert guided.scores[0, 0].min() > 1 - 1e-5 and guided.scores[1, 0].max() < -1 + 1e-5
    assert (guided.scores / 0.07).abs().max() <= 14.3


@torch.no_grad()
def test_without_fusion_the_levels_stay() -> None:
    model = denseclip(fused_level=None).eval()
    features, dense, pooled = trunk_output()
    guided = model(features, dense, pooled)
    assert model.extra_channels == {} and guided.scores.shape == (2, 3, 4, 4)
    assert guided.features.keys() == features.keys()
    assert all(guided.features[name] is level for name, level in features.items())


@torch.no_grad()
def test_without_gamma_the_decoder_has_no_influence() -> None:
    model = denseclip().eval()
    inputs = trunk_output()

    def change_of_decoder() -> float:
        before = model(*inputs).scores
        randomise(model.decoder)
        return (model(*inputs).scores - before).abs().max().item()

    assert change_of_decoder() > 1e-2
    model.gamma.zero_()
    assert change_of_decoder() == 0
    alone = denseclip(decoder=None).eval()
    torch.testing.assert_close(model(*inputs).scores, alone(*inputs).scores)
    assert alone.gamma is None and alone(*inputs).text.shape == (2, 4, EMBED)


@torch.no_grad()
def test_text_depends_on_the_image_after_the_text_tower() -> None:
    model = denseclip().eval()
    features, dense, pooled = trunk_output()
    text = model(features, dense, pooled).text
    changed = model(features, dense, torch.stack([pooled[0], pooled[1].neg()])).text
    assert torch.equal(text[0], changed[0]) and not torch.allclose(text[1], changed[1])


@pytest.mark.parametrize("prompting", ["post", "pre"])
def test_gradients(prompting: str) -> None:
    model = denseclip(prompting=prompting).train()
    features, dense, pooled = trunk_output()
    dense.requires_grad_()
    pooled.requires_grad_()
    guided = model(features, dense, pooled)
    labels = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    model.losses(guided, labels)["loss_aux"].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith("text.encoder.") for name in trained)
    assert {"text.contexts", "decoder.out_proj.1.weight"} <= set(trained)
    assert ("gamma" in trained) == (prompting == "post")
    for name, parameter in trained.items():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(p.grad is None for p in model.text.encoder.parameters())
    assert dense.grad.abs().sum() > 0 and pooled.grad.abs().sum() > 0


@torch.no_grad()
def test_prompts_see_the_image_before_the_text_tower() -> None:
    model = denseclip(prompting="pre").eval()
    features, dense, pooled = trunk_output()
    guided = model(features, dense, pooled)
    memory = torch.cat([pooled[:, None], dense.flatten(2).mT], dim=1)
    for image in range(2):
        contexts = model.decoder(model.text.contexts, memory[image : image + 1])
        torch.testing.assert_close(guided.text[image], model.text(contexts)[0])
    assert (guided.text[0] - guided.text[1]).abs().max() > 1e-3
    text = model(features, dense, torch.stack([pooled[0], pooled[1].neg()])).text
    torch.testing.assert_close(text[0], guided.text[0])
    assert (text[1] - guided.text[1]).abs().max() > 1e-3


@torch.no_grad()
def test_only_post_model_prompting_spares_the_text_tower() -> None:
    inputs = trunk_output()
    for prompting, expected in (("post", [4]), ("pre", [8, 8])):
        model = denseclip(prompting=prompting).eval()
        batches: list[int] = []
        tower = model.text.encoder.ln_final
        tower.register_forward_pre_hook(lambda _, inputs, seen=batches: seen.append(len(inputs[0])))
        first, second = model(*inputs), model(*inputs)
        assert batches == expected
        torch.testing.assert_close(first.scores, second.scores)


@torch.no_grad()
def test_synonyms_reduce_by_maximum_and_order_only_permutes() -> None:
    model = denseclip().eval()
    inputs = trunk_output()
    merged = model(*inputs)
    assert merged.text.shape == (2, 4, EMBED) and merged.scores.shape == (2, 3, 4, 4)
    model.set_vocabulary(Vocabulary.parse("cat;fire hydrant;hydrant;dog"))
    apart = model(*inputs).scores
    torch.testing.assert_close(merged.scores[:, [0, 2]], apart[:, [0, 3]])
    torch.testing.assert_close(merged.scores[:, 1], apart[:, 1:3].amax(dim=1))
    model.set_vocabulary(Vocabulary.parse("dog;cat;hydrant,fire hydrant"))
    order = [1, 2, 0]
    torch.testing.assert_close(model(*inputs).scores[:, order], merged.scores)


@torch.no_grad()
def test_another_vocabulary_changes_the_channels() -> None:
    model = denseclip().eval()
    inputs = trunk_output()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    words = Vocabulary.parse("a;b;c;d;e;f;g")
    model.set_vocabulary(words)
    guided = model(*inputs)
    assert model.vocabulary is words and model.extra_channels == {"res5": 7}
    assert guided.scores.shape == (2, 7, 4, 4)
    assert guided.features["res5"].shape == (2, 12, 4, 4)
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())


@torch.no_grad()
def test_losses_are_of_scores_over_the_temperature() -> None:
    model = denseclip(temperature=0.1).eval()
    guided = model(*trunk_output())
    labels = torch.randint(0, 3, (2, 128, 128), generator=torch.Generator().manual_seed(0))
    found = model.losses(guided, labels)
    torch.testing.assert_close(found, PixelScoreLoss()(guided.scores / 0.1, labels))
    assert denseclip(auxiliary=None).losses(guided, labels) == {}

    detector = denseclip(auxiliary=BoxScoreLoss(), fuse_scaled=True).eval()
    guided = detector(*trunk_output())
    boxes = Boxes(torch.tensor([[0.0, 0.0, 60.0, 60.0]]))
    targets = [Instances((128, 128), gt_boxes=boxes, gt_classes=torch.tensor([k])) for k in (0, 2)]
    expected = BoxScoreLoss()(guided.scores / 0.07, targets, (32, 32))
    torch.testing.assert_close(detector.losses(guided, targets), expected)


def test_autocast_keeps_scores_in_full_precision() -> None:
    model = denseclip().train()
    features, dense, pooled = trunk_output()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guided = model({k: v.bfloat16() for k, v in features.items()}, dense, pooled)
    assert guided.scores.dtype == torch.float32
    assert guided.features["res5"].dtype == torch.bfloat16
    guided.scores.sum().backward()
    assert torch.isfinite(model.text.contexts.grad).all()


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"prompting": "during"}, "'during'"),
        ({"embed_dim": 32}, "embeds in 24 dimensions, the guidance in 32"),
        ({"prompting": "pre", "decoder": None}, "needs a context decoder"),
        ({"decoder": ContextDecoder(EMBED, 16, 2, query_dim=WIDTH)}, "query_dim=24, .* 24 and 16"),
        ({"decoder": ContextDecoder(EMBED, 16, 2), "prompting": "pre"}, "query_dim=16, .* and 24"),
        ({"decoder": ContextDecoder(8, 16, 2)}, "embed_dim=24 .* has 8 and 8"),
    ],
)
def test_sizes_that_do_not_fit(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        denseclip(**settings)


def test_a_level_of_another_size() -> None:
    with pytest.raises(ConfigError, match=r"\(4, 4\) cells .* res4 of \(8, 8\): choose"):
        denseclip(fused_level="res4")(*trunk_output())


def test_a_trunk_without_embeddings() -> None:
    with pytest.raises(ValueError, match="needs the dense and the pooled embedding"):
        denseclip()(trunk_output()[0], None, None)


def test_names_of_the_state_dict() -> None:
    model = denseclip(auxiliary=PixelScoreLoss())
    own = {name.partition(".")[0] for name in model.state_dict()}
    assert own == {"gamma", "text", "decoder"}
    assert model.gamma.shape == (EMBED,) and model.gamma.unique().tolist() == pytest.approx([0.1])
    assert DenseCLIP(prompted(), None, None, embed_dim=EMBED).gamma is None


def test_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = denseclip().eval()
        dense, pooled = torch.zeros(2, EMBED, 4, 4), torch.zeros(2, EMBED)
        guided = model({"res5": torch.zeros(2, 5, 4, 4)}, dense, pooled)
    assert guided.scores.is_meta and guided.features["res5"].shape == (2, 8, 4, 4)
