"""The text encoder of both model classes."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from densedet.clip import build_text_encoder, tokens
from densedet.clip.text import TextEncoder, tokenize_whole
from densedet.errors import ConfigError, VocabularyError

TEXTS = ["a photo of a cat.", "dog", "", "one two three four five six seven eight nine ten eleven"]


@pytest.fixture(params=["eva", "vit"])
def model(request: pytest.FixtureRequest, make_clip: Any) -> Any:
    return make_clip(request.param)


@pytest.fixture
def encoder(model: Any) -> TextEncoder:
    return build_text_encoder(model)


@torch.no_grad()
def test_equals_open_clip(model: Any, encoder: TextEncoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    assert tokens.shape == (4, 16) and tokens.dtype == torch.int64
    assert tokens[:, 0].tolist() == [49406] * 4
    assert tokens.max(dim=1).values.tolist() == [49407] * 4
    found = encoder.encode(TEXTS)
    torch.testing.assert_close(found, model.encode_text(tokens), rtol=1e-5, atol=1e-5)
    assert found.shape == (4, encoder.embed_dim)


@torch.no_grad()
def test_batches_do_not_change_the_result(encoder: TextEncoder) -> None:
    texts = [f"number {i}" for i in range(300)] + ["a much longer text than all the others"]
    found = encoder.encode(texts)
    alone = torch.cat([encoder.encode([texts[i]]) for i in (0, 255, 256, 300)])
    torch.testing.assert_close(found[[0, 255, 256, 300]], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_prompts_with_learned_contexts(encoder: TextEncoder) -> None:
    tokens = encoder.tokenize(["cat", "remote control"])
    words = encoder.embed_tokens(tokens)
    assert words.shape == (2, 16, encoder.width)
    context = torch.randn(3, encoder.width, generator=torch.Generator().manual_seed(0))
    prompts = torch.cat([words[:, :1], context.expand(2, -1, -1), words[:, 1:-3]], dim=1)
    eot = tokens.argmax(dim=1) + 3
    found = encoder.encode_prompts(prompts, eot)
    # Nothing after the end token has an influence, everything before it has.
    changed = prompts.clone()
    for row, end in enumerate(eot):
        changed[row, end + 1 :] += 1
    torch.testing.assert_close(encoder.encode_prompts(changed, eot), found)
    changed[:, 2] *= torch.linspace(-1, 1, encoder.width)
    assert (encoder.encode_prompts(changed, eot) - found).abs().amax(dim=1).min() > 1e-3


def test_gradient_reaches_the_context(encoder: TextEncoder) -> None:
    prompts = encoder.embed_tokens(encoder.tokenize(["cat"])).detach().requires_grad_()
    encoder.encode_prompts(prompts, torch.tensor([2])).sum().backward()
    reached = prompts.grad.abs().sum(dim=-1)[0] > 0
    assert reached.tolist() == [True] * 3 + [False] * 13


def test_prompts_longer_than_the_context(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="17 tokens do not fit the context of 16"):
        encoder.encode_prompts(torch.zeros(1, 17, encoder.width), torch.tensor([3]))


@torch.no_grad()
def test_kept_positions(model: Any, encoder: TextEncoder) -> None:
    words = encoder.embed_tokens(encoder.tokenize(["cat", "remote control"]))[:, :6]
    end = torch.tensor([2, 3])
    before = encoder.encode_prompts(words, end)
    shared = encoder.positional_embedding
    encoder.positional_embedding.requires_grad_(False)
    encoder.keep_positions(6)
    assert encoder.context_length == 6 and encoder.tokenize(["cat"]).shape == (1, 6)
    assert torch.equal(encoder.positional_embedding, shared[:6]) and shared.shape[0] == 16
    assert not encoder.positional_embedding.requires_grad
    assert encoder.state_dict()["positional_embedding"].shape == (6, encoder.width)
    torch.testing.assert_close(encoder.encode_prompts(words, end), before)
    assert model.encode_text(torch.full((1, 16), 49407)).shape[0] == 1  # its own table is whole
    encoder.positional_embedding.zero_()
    assert shared.any()


@pytest.mark.parametrize("length", [17, 0])
def test_positions_that_are_not_there(encoder: TextEncoder, length: int) -> None:
    with pytest.raises(ConfigError, match=f"prompts of {length} tokens .* of 16 positions"):
        encoder.keep_positions(length)


def test_whole_tokens(encoder: TextEncoder) -> None:
    texts = ["cat", "one two three four five six seven eight nine ten eleven twelve thirteen", ""]
    with torch.device("meta"):
        tokens = tokenize_whole(texts)
    assert tokens.device.type == "cpu" and tokens.dtype == torch.int64
    assert tokens.shape == (3, 15)
    assert tokens.argmax(dim=1).tolist() == [2, 14, 1]
    assert torch.equal(tokens[[0, 2]], encoder.tokenize(["cat", ""])[:, :15])


def test_names_are_normalised_averaged_normalised(encoder: TextEncoder) -> None:
    found = encoder.embed_names(["cat", "dog"], "single")
    alone = encoder.encode(["a photo of a cat.", "a photo of a dog."])
    torch.testing.assert_close(found, nn.functional.normalize(alone, dim=1).detach())
    assert not found.requires_grad
    many = encoder.embed_names(["cat"], "clip80")[0]
    assert many.norm().item() == pytest.approx(1, abs=1e-6)
    assert (many - found[0]).abs().max() > 1e-3


def test_no_names_and_no_texts(encoder: TextEncoder) -> None:
    assert encoder.embed_names([], "single").shape == (0, encoder.embed_dim)
    assert encoder.encode([]).shape == (0, encoder.embed_dim)


def test_unknown_template_set(encoder: TextEncoder) -> None:
    with pytest.raises(VocabularyError, match="clip81"):
        encoder.embed_names(["cat"], "clip81")


@torch.no_grad()
def test_untrained_words_are_named_once(
    encoder: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="densedet"):
        encoder.encode(["cat", "dog"])
        assert caplog.text == ""
        known, unknown = encoder.tokenize(["cat dog"])[0, 1:3]
        encoder.token_embedding.weight[unknown] = 0
        encoder.embed_names(["cat", "dog"], "clip80")
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().endswith("here: dog")


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"text_pool_type": "last"}, "unsupported text tower CLIP"),
        ({"attn_mask": None}, "unsupported text tower CLIP"),
        ({"text_projection": None}, "unsupported text tower CLIP"),
        ({"token_embedding": nn.Embedding(100, 32)}, "a text tower of 100 tokens"),
    ],
)
def test_other_text_towers_are_refused(make_clip: Any, change: dict[str, Any], reason: str) -> None:
    model = make_clip("vit")
    for name, value in change.items():
        setattr(model, name, value)
    with pytest.raises(ConfigError, match=reason):
        build_text_encoder(model)


@pytest.fixture
def warnings_of_cut(caplog: pytest.LogCaptureFixture) -> Any:
    tokens._warn.cache_clear()
    caplog.set_level(logging.WARNING, logger="densedet")
    return lambda: [r.getMessage() for r in caplog.records if "is longer than" in r.getMessage()]


def words(count: int, last: str = "") -> str:
    """So many words of one token each."""
    return " ".join(["cat", "dog", *["red"] * (count - 3), last or "sky"])


@torch.no_grad()
def test_a_name_that_is_cut_is_named_once(encoder: TextEncoder, warnings_of_cut: Any) -> None:
    """16 tokens less start and end are 14 words, of which "a photo of a" takes four."""
    encoder.embed_names(["cat", words(10)], "single")
    assert warnings_of_cut() == []  # the "." after it is cut, no word
    encoder.embed_names(["cat", words(13)], "single")
    encoder.embed_names([words(12), "dog", "moon"], "single")
    encoder.embed_names([words(13)], "single")
    assert warnings_of_cut() == [
        f"{words(n)!r} is longer than the 16 tokens that the text tower reads: of its {n} words "
        "the first 10 are kept; shorten it"
        for n in (13, 12)
    ]
    assert dict(encoder.cut(["cat", words(13)], "single")) == {words(13): (10, 13)}


@torch.no_grad()
def test_a_text_that_is_cut_is_named_once(encoder: TextEncoder, warnings_of_cut: Any) -> None:
    encoder.encode([words(14)])
    assert warnings_of_cut() == []
    encoder.encode([words(17), "cat"])
    encoder.tokenize([words(17)])
    (message,) = warnings_of_cut()
    assert message.endswith("of its 17 words the first 14 are kept; shorten it")


@pytest.mark.parametrize("templates", ["plain", "single", "clipself63", "clip80"])
def test_the_words_that_are_kept_are_those_of_the_worst_prompt(
    encoder: TextEncoder, templates: str
) -> None:
    """Against the tokens of every prompt."""
    name, room = words(13), []
    for prompt in tokens.render_prompts("x", templates):
        before = prompt.rstrip(".").split()
        before = before[: before.index("x")]
        room.append(14 - (len(tokens.tokenize_whole([" ".join(before)])[0]) - 2))
    expected = {name: (max(0, min(room)), 13)} if min(room) < 13 else {}
    assert dict(encoder.cut([name, "cat"], templates)) == expected
    assert (templates == "plain") == (expected == {})


@torch.no_grad()
def test_categories_that_become_equal_are_refused(encoder: TextEncoder) -> None:
    names = [words(20, "sky"), "cat", words(20, "sea")]
    assert len({*names}) == 3
    with pytest.raises(VocabularyError, match=r"sky'.*sea' are the same to the text tower.*16"):
        encoder.embed_names(names, "single")
    same = encoder.embed_names(names, "single", groups=[0, 1, 0])  # synonyms of one category
    assert torch.equal(same[0], same[2])
    apart = [words(9, "sky"), words(9, "sea")]
    left, right = encoder.embed_names(apart, "single")
    assert not torch.equal(left, right)
    with pytest.raises(VocabularyError, match="are the same"):  # one of them fits exactly
        encoder.embed_names([words(14), words(14) + " moon"], "plain")
    encoder.embed_names(["cat", "cat"], "single")  # the same before any cut
