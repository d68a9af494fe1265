"""The shared beginning of prompts against every prompt encoded whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

from densedet.clip import build_text_encoder
from densedet.clip.prefix import causal_mask
from densedet.clip.text import TextEncoder
from densedet.errors import ConfigError

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3}
VISION = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
ENDS = torch.tensor([1, 4, 0, 2, 5])
KINDS: dict[str, tuple[type[nn.Module], dict[str, Any], bool]] = {
    "quick_gelu": (CLIP, {}, True),
    "gelu": (CLIP, {}, False),
    "custom": (CustomTextCLIP, {}, False),
    "layer_scale": (CLIP, {"ls_init_value": 0.7}, True),
    "linear_projection": (CustomTextCLIP, {"proj_bias": True}, True),
}


def make_encoder(kind: str = "quick_gelu", **more: Any) -> TextEncoder:
    torch.manual_seed(0)
    model_class, text, quick_gelu = KINDS[kind]
    encoder = build_text_encoder(model_class(20, VISION, {**TEXT, **text, **more}, quick_gelu))
    with torch.no_grad():
        for parameter in encoder.parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.add_(scale * torch.randn_like(parameter))
    return encoder.eval()


@pytest.fixture
def encoder() -> TextEncoder:
    return make_encoder()


def make_parts(batch: int = 2, length: int = 4) -> tuple[Tensor, Tensor]:
    """Beginnings of every image, and the ends of five prompts, of several lengths."""
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randn(batch, length, 32, generator=generator)
    return prefix, torch.randn(len(ENDS), 6, 32, generator=generator)


def encode_whole(encoder: TextEncoder, prefix: Tensor, words: Tensor) -> Tensor:
    """One prompt at a time, cut after its end token."""
    rows = [
        torch.stack([
            encoder.encode_prompts(
                torch.cat([start, word[: end + 1]])[None], torch.tensor([len(start) + end])
            )[0]
            for word, end in zip(words, ENDS.tolist(), strict=True)
        ])
        for start in prefix
    ]  # fmt: skip
    return torch.stack(rows)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("length", [1, 4, 10])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_equals_whole_prompts(kind: str, length: int) -> None:
    encoder = make_encoder(kind)
    prefix, words = make_parts(length=length)
    expected = encode_whole(encoder, prefix, words)
    assert (expected[0] - expected[1]).abs().amax(dim=1).min() > 1e-3  # the beginning matters
    for chunk in (None, 1, 2, 5, 100):
        assert relative(encoder.encode_shared(prefix, words, ENDS, chunk), expected) <= 1e-5


@torch.no_grad()
def test_tokens_of_texts_equal_open_clip(make_clip: Any) -> None:
    for family in ("eva", "vit"):
        model = make_clip(family)
        encoder = build_text_encoder(model)
        tokens = encoder.tokenize(["a photo of a cat.", "dog", "remote control"])
        embedded = encoder.embed_tokens(tokens)
        found = encoder.encode_shared(embedded[:1, :1], embedded[:, 1:], tokens.argmax(dim=1) - 1)
        assert relative(found[0], model.encode_text(tokens)) <= 1e-5


@torch.no_grad()
def test_tokens_after_the_end_change_nothing(encoder: TextEncoder) -> None:
    prefix, words = make_parts()
    before = encoder.encode_shared(prefix, words, ENDS)
    after_end = torch.arange(6) > ENDS[:, None]
    words[after_end] += 1
    assert torch.equal(encoder.encode_shared(prefix, words, ENDS), before)
    words[torch.arange(5), ENDS] *= torch.linspace(-1, 1, 32)
    changed = encoder.encode_shared(prefix, words, ENDS)
    assert (changed - before).abs().amax(dim=2).min() > 1e-3


Encode = Callable[[Tensor, Tensor], Tensor]


def gradients(encoder: TextEncoder, encode: Encode) -> tuple[Tensor, list[Tensor]]:
    """The embeddings, and the gradients of beginnings, words and every used weight."""
    parts = [part.requires_grad_() for part in make_parts()]
    embeddings = encode(*parts)
    weights = [p for n, p in encoder.named_parameters() if n != "token_embedding.weight"]
    factors = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(2))
    return embeddings, list(torch.autograd.grad((embeddings * factors).sum(), [*parts, *weights]))


def shared(encoder: TextEncoder, chunk: int | None = None) -> Encode:
    return lambda prefix, words: encoder.encode_shared(prefix, words, ENDS, chunk)


@pytest.mark.parametrize("chunk", [None, 2])
def test_gradients_equal_those_of_whole_prompts(encoder: TextEncoder, chunk: int | None) -> None:
    _, expected = gradients(encoder, lambda *parts: encode_whole(encoder, *parts))
    _, found = gradients(encoder, shared(encoder, chunk))
    for one, other in zip(found, expected, strict=True):
        assert relative(one, other) <= 1e-5


@pytest.mark.parametrize("chunk", [None, 2])
def test_checkpointing_changes_nothing(encoder: TextEncoder, chunk: int | None) -> None:
    embeddings, expected = gradients(encoder, shared(encoder, chunk))
    encoder.checkpointing = True
    again, found = gradients(encoder, shared(encoder, chunk))
    torch.testing.assert_close(again, embeddings)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_checkpointing_of_whole_prompts_changes_nothing(encoder: TextEncoder) -> None:
    encode = lambda *parts: encode_whole(encoder, *parts)  # noqa: E731
    embeddings, expected = gradients(encoder, encode)
    encoder.checkpointing = True
    again, found = gradients(encoder, encode)
    torch.testing.assert_close(again, embeddings)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def saved_bytes(encoder: TextEncoder, share: bool) -> int:
    """Bytes that the graph keeps for the backward pass, the parameters themselves left out."""
    own = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    prefix, words = make_parts()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if share:
            found = encoder.encode_shared(prefix, words.repeat(8, 1, 1), ENDS.repeat(8))
        else:
            start = prefix[:, None].expand(-1, 40, -1, -1)
            prompts = torch.cat([start, words.repeat(8, 1, 1).expand(2, -1, -1, -1)], dim=2)
            found = encoder.encode_prompts(prompts.flatten(0, 1), ENDS.repeat(16))
        total = sum(storages.values())
    found.sum().backward()
    return total


@pytest.mark.parametrize("share", [True, False])
def test_checkpointing_keeps_less(share: bool) -> None:
    encoder = make_encoder(layers=8)
    plain = saved_bytes(encoder, share)
    encoder.checkpointing = True
    assert saved_bytes(encoder, share) < 0.3 * plain


def test_sharing_keeps_less_than_whole_prompts(encoder: TextEncoder) -> None:
    assert saved_bytes(encoder, share=True) < 0.8 * saved_bytes(encoder, share=False)


@torch.no_grad()
def test_the_beginning_runs_once_and_the_words_in_chunks(encoder: TextEncoder) -> None:
    blocks = encoder.transformer.resblocks
    beginnings: list[tuple[int, ...]] = []
    tokens: list[tuple[int, ...]] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda _, inputs: beginnings.append(inputs[0].shape))
    blocks[1].mlp.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape))
    prefix, words = make_parts()
    encoder.encode_shared(prefix, words, ENDS, chunk=2)
    assert beginnings == [(2, 4, 32)] * 3
    assert tokens == [(2, 4, 32), (2, 2, 6, 32), (2, 2, 6, 32), (2, 1, 6, 32)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_under_autocast(encoder: TextEncoder, checkpointing: bool) -> None:
    encoder.checkpointing = checkpointing
    expected, _ = gradients(encoder, shared(encoder))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings, found = gradients(encoder, shared(encoder))
    assert embeddings.dtype == torch.bfloat16
    assert 0 < relative(embeddings.float(), expected) < 0.05
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_on_the_meta_device(checkpointing: bool) -> None:
    with torch.device("meta"):
        encoder = build_text_encoder(CLIP(20, VISION, TEXT))
        encoder.checkpointing = checkpointing
        prefix, words = torch.zeros(2, 4, 32, requires_grad=True), torch.zeros(5, 6, 32)
        found = encoder.encode_shared(prefix, words, ENDS.to("meta"), chunk=2)
    assert found.is_meta and found.shape == (2, 5, 20)
    found.sum().backward()
    assert prefix.grad is not None and prefix.grad.shape == prefix.shape


def test_prompts_longer_than_the_context(encoder: TextEncoder) -> None:
    prefix, words = make_parts(length=11)
    with pytest.raises(ValueError, match="prompts of 17 tokens do not fit the context of 16"):
        encoder.encode_shared(prefix, words, ENDS)


@pytest.mark.parametrize("chunk", [0, -3])
def test_chunks_below_one(encoder: TextEncoder, chunk: int) -> None:
    with pytest.raises(ValueError, match=f"chunk {chunk} must be at least 1"):
        encoder.encode_shared(*make_parts(), ENDS, chunk)


def test_other_blocks_are_refused() -> None:
    encoder = build_text_encoder(CLIP(20, VISION, {**TEXT, "block_type": "custom"}))
    with pytest.raises(ConfigError, match="blocks of CustomResidualAttentionBlock.*share_prefix"):
        encoder.encode_shared(*make_parts(), ENDS)
    prompts = torch.cat([part[:2] for part in make_parts()], dim=1)
    assert encoder.encode_prompts(prompts, torch.tensor([9, 9])).shape == (2, 20)


def test_causal_mask() -> None:
    mask = causal_mask(3, torch.zeros(1, dtype=torch.float64))
    inf = torch.inf
    assert mask.tolist() == [[0, -inf, -inf], [0, 0, -inf], [0, 0, 0]]
    assert mask.dtype == torch.float64
