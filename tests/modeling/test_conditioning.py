"""Contexts that follow the image: every mode, the start at the static prompts, gradients."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.modeling.guidance import ContextDecoder, PromptCondition

EMBED, WIDTH, CONTEXTS = 32, 16, 4
MODES = ["static", "add", "concat", "query"]


def make(mode: Any, **kwargs: Any) -> PromptCondition:
    torch.manual_seed(0)
    if mode == "query":
        kwargs.setdefault("decoder", ContextDecoder(EMBED, 16, 2, layers=1, query_dim=WIDTH))
    return PromptCondition(mode, embed_dim=EMBED, width=WIDTH, **kwargs).eval()


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts, and dense and pooled embeddings that are not normalised."""
    generator = torch.Generator().manual_seed(1)
    contexts = torch.randn(1, CONTEXTS, WIDTH, generator=generator)
    dense = 3 * torch.randn(batch, EMBED, 2, 3, generator=generator)
    return contexts, dense, 5 * torch.randn(batch, EMBED, generator=generator)


@torch.no_grad()
def test_at_the_start_the_image_adds_nothing() -> None:
    contexts, dense, pooled = inputs()
    static = make("static")(contexts, dense, pooled)
    assert torch.equal(static, contexts.expand(3, -1, -1))
    torch.testing.assert_close(make("add")(contexts, dense, pooled), static)
    further = make("concat")(contexts, dense, pooled)
    assert torch.equal(further[:, :CONTEXTS], static) and not further[:, CONTEXTS:].any()


@torch.no_grad()
def test_modes_against_their_formulas() -> None:
    contexts, dense, pooled = inputs()
    for mode in ("add", "concat"):
        model = make(mode)
        randomise(model)
        first, _, last = model.net
        assert (first.out_features, last.out_features) == (EMBED // 16, WIDTH)
        found = model(contexts, dense, pooled)
        for image in range(3):
            unit = pooled[image] / pooled[image].norm()
            hidden = (first.weight @ unit + first.bias).clamp(min=0)
            shift = last.weight @ hidden + last.bias
            added = contexts[0] + shift
            expected = added if mode == "add" else torch.cat([contexts[0], shift[None]])
            torch.testing.assert_close(found[image], expected)
    model = make("query")
    memory = torch.cat([pooled[:, None], dense.flatten(2).mT], dim=1)
    expected = model.decoder(contexts.expand(3, -1, -1), memory)
    torch.testing.assert_close(model(contexts, dense, pooled), expected)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_images_get_contexts_of_their_own(mode: str) -> None:
    model = make(mode)
    randomise(model)
    contexts, dense, pooled = inputs()
    found = model(contexts, dense, pooled)
    assert found.shape == (3, CONTEXTS + model.extra_contexts, WIDTH)
    assert model.extra_contexts == (mode == "concat")
    assert ((found[0] - found[1]).abs().max() > 1e-3) == (mode != "static")
    changed = torch.cat([pooled[:2], -pooled[2:]])
    torch.testing.assert_close(model(contexts, dense, changed)[:2], found[:2])
    brighter = model(contexts, dense, 7 * pooled)
    if mode in ("add", "concat"):
        torch.testing.assert_close(brighter, found)


def test_gradients_and_detachment() -> None:
    for mode in MODES[1:]:
        for detach in (False, True):
            model = make(mode, detach=detach)
            randomise(model)
            contexts, dense, pooled = (x.requires_grad_() for x in inputs())
            F.mse_loss(found := model(contexts, dense, pooled), found.detach() + 1).backward()
            assert all(p.grad is not None and p.grad.any() for p in model.parameters()), mode
            assert contexts.grad.any()
            assert (pooled.grad is None) == detach
            assert (dense.grad is None) == (detach or mode != "query")


def test_parameters() -> None:
    assert not list(make("static").parameters())
    names = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]
    assert list(make("add").state_dict()) == names
    assert [tuple(p.shape) for p in make("add", reduction=4).parameters()] == [
        *((8, EMBED), (8,), (WIDTH, 8), (WIDTH,))
    ]
    decoder = make("query", decoder=None).decoder
    assert (decoder.embed_dim, decoder.query_dim) == (EMBED, WIDTH)


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"mode": "multiply"}, "mode='multiply': choose from static, add, concat, query"),
        ({"mode": "add", "reduction": 0}, "reduction=0: choose 1 to 32"),
        ({"mode": "add", "reduction": 33}, "reduction=33: choose 1 to 32"),
        ({"mode": "add", "decoder": ContextDecoder(EMBED, 16, 2)}, "mode='add' takes no decoder"),
        ({"mode": "query", "decoder": ContextDecoder(EMBED, 16, 2)}, "query_dim=16, .* 32 and 32"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(**settings)
