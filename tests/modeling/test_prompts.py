"""Class names with learned contexts through a text tower."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from densedet.clip import TextEncoder, build_text_encoder, create_text_encoder
from densedet.clip.text import tokenize_whole
from densedet.clip.tiny import build_tiny_clip
from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.guidance import PromptedTextEncoder
from densedet.vocabulary import Category, Vocabulary

WORDS = Vocabulary.parse("cat;fire hydrant,hydrant;dog")
VISION = {"image_size": 32, "layers": 1, "width": 16, "head_width": 16, "patch_size": 16}


def text_encoder(length: int = 77, width: int = 16, embed: int = 24, **text: Any) -> TextEncoder:
    torch.manual_seed(0)
    sizes = {"context_length": length, "width": width, "heads": 2, "layers": 2, **text}
    config = {"embed_dim": embed, "vision_cfg": VISION, "text_cfg": sizes, "quick_gelu": True}
    encoder = build_text_encoder(build_tiny_clip(config)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.3 if parameter.ndim > 1 else 0.1)
    return encoder


def prompted(vocabulary: Vocabulary = WORDS, **kwargs: Any) -> PromptedTextEncoder:
    encoder = text_encoder()
    torch.manual_seed(1)
    return PromptedTextEncoder(encoder, vocabulary, **{"num_contexts": 3, **kwargs})


def count_calls(module: nn.Module) -> list[int]:
    batches: list[int] = []
    module.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    return batches


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def golden(golden_dir: Path) -> dict[str, Tensor]:
    with np.load(golden_dir / "denseclip_text.npz") as file:
        arrays = {k: file[k] for k in file.files}
    names = [str(name) for name in arrays.pop("names")]
    config = json.loads(str(arrays.pop("config")))
    return {k: torch.from_numpy(v) for k, v in arrays.items()} | {"names": names, "config": config}


def golden_encoder(golden: dict[str, Any]) -> TextEncoder:
    config = golden["config"]
    encoder = text_encoder(
        config["archive_length"],
        config["width"],
        config["embed_dim"],
        heads=config["heads"],
        layers=config["layers"],
    )
    weights = {k[8:]: v for k, v in golden.items() if k.startswith("weights/")}
    encoder.load_state_dict(weights)
    return encoder


@pytest.fixture(params=[True, False], ids=["shared", "whole"])
def reference(request: pytest.FixtureRequest, golden: dict[str, Any]) -> PromptedTextEncoder:
    config = golden["config"]
    return PromptedTextEncoder(
        golden_encoder(golden),
        Vocabulary.from_names(golden["names"]),
        num_contexts=config["n_contexts"],
        class_tokens=config["class_tokens"],
        share_prefix=request.param,
    )


@pytest.mark.golden
def test_learned_contexts_equal_the_reference(
    reference: PromptedTextEncoder, golden: dict[str, Any]
) -> None:
    expected = golden["token_ids"]
    assert torch.equal(reference.tokens, expected[:, : reference.tokens.shape[1]])
    assert not expected[:, reference.tokens.shape[1] :].any()
    reference.load_state_dict({"contexts": golden["contexts_b1"]}, strict=False)
    reference.train()
    output = reference()
    assert difference(output, golden["output_b1"]) <= 1e-5
    (output * golden["grad_output_b1"]).sum().backward()
    assert difference(reference.contexts.grad, golden["grad_contexts_b1"]) <= 1e-4
    assert difference(reference.eval()(), golden["output_b1"]) <= 1e-5


@pytest.mark.golden
@torch.no_grad()
def test_contexts_of_every_image_equal_the_reference(
    reference: PromptedTextEncoder, golden: dict[str, Any]
) -> None:
    assert difference(reference(golden["contexts_b2"]), golden["output_b2"]) <= 1e-5


@pytest.mark.golden
@torch.no_grad()
def test_plain_encoder_equals_the_reference(golden: dict[str, Any]) -> None:
    encoder = golden_encoder(golden)
    texts = [f"a photo of a {name}" for name in golden["names"]]
    assert torch.equal(encoder.tokenize(texts), golden["plain_token_ids"])
    assert difference(encoder.encode(texts), golden["plain_output"]) <= 1e-5


@pytest.mark.golden
def test_token_ids_equal_the_reference(golden_dir: Path) -> None:
    recorded = json.loads((golden_dir / "denseclip_tokens.json").read_text("utf-8"))
    lists = {k: v for k, v in recorded.items() if isinstance(v, dict) and "ids" in v}
    assert lists
    for entry in lists.values():
        tokens = tokenize_whole(entry["names"])  # below Vocabulary, which may join names
        assert tokens.shape == (len(entry["names"]), entry["max_length"])
        ids = torch.tensor(entry["ids"])
        assert torch.equal(tokens, ids[:, : entry["max_length"]])
        assert not ids[:, entry["max_length"] :].any()
        assert (tokens.argmax(dim=1) + 1).tolist() == entry["lengths"]
    text = prompted(class_tokens=5)
    for name in recorded["too_long_at_5"]:
        with pytest.raises(VocabularyError, match=f"{name!r} has . tokens"):
            text.set_vocabulary(Vocabulary.from_names([name]))


def by_hand(text: PromptedTextEncoder, name: str, contexts: Tensor) -> Tensor:
    """One name alone, its sequence padded to the full length of the position table."""
    encoder = text.encoder
    tokens = encoder.tokenize([name])[0]
    words = encoder.embed_tokens(tokens)
    length = encoder.context_length
    sequence = torch.cat([words[:1], contexts, words[1:]])[:length]
    end = tokens.argmax() + len(contexts)
    return encoder.encode_prompts(sequence[None], end[None])[0]


@torch.no_grad()
def test_contexts_stand_between_start_and_name() -> None:
    text = prompted().eval()
    assert text.groups.tolist() == [0, 1, 1, 2]
    found = text()
    assert found.shape == (1, 4, 24)
    for row, name in zip(found[0], ["cat", "fire hydrant", "hydrant", "dog"], strict=True):
        torch.testing.assert_close(row, by_hand(text, name, text.contexts[0]))
    text.contexts[:, 1].neg_()
    assert (text() - found).abs().amax(dim=2).min() > 1e-3


@torch.no_grad()
def test_contexts_of_every_image() -> None:
    text = prompted().train()
    contexts = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(3))
    found = text(contexts)
    assert found.shape == (2, 4, 24)
    for image in range(2):
        torch.testing.assert_close(found[image, 1], by_hand(text, "fire hydrant", contexts[image]))
    torch.testing.assert_close(text(text.contexts.expand(2, -1, -1)), text().expand(2, -1, -1))


@torch.no_grad()
def test_names_may_leave_room_for_more_contexts() -> None:
    text = prompted(Vocabulary.parse("cat;dog"))  # 3 contexts and 5 class tokens, of which 3 used
    more = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(text(more)[0, 0], by_hand(text, "cat", more[0]))
    with pytest.raises(ValueError, match="9 tokens do not fit the context of 8"):
        text(torch.zeros(1, 6, 16))


def contexts_of_images(count: int = 3) -> Tensor:
    return torch.randn(2, count, 16, generator=torch.Generator().manual_seed(5))


def gradient(text: PromptedTextEncoder, contexts: Tensor) -> Tensor:
    found = text(contexts.requires_grad_())
    factors = torch.randn(found.shape, generator=torch.Generator().manual_seed(6))
    return torch.autograd.grad((found * factors).sum(), contexts)[0]


EXACT = [
    {"chunk": 1},
    {"chunk": 3},
    {"chunk": 100},
    {"checkpointing": True},
    {"chunk": 3, "checkpointing": True},
]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("settings", [{}, *EXACT], ids=str)
def test_every_way_gives_the_same(settings: dict[str, Any], share: bool) -> None:
    whole = prompted(share_prefix=False).train()
    text = prompted(share_prefix=share, **settings).train()
    for contexts in (contexts_of_images(), text.contexts.detach()):
        assert difference(text(contexts), whole(contexts)) <= 1e-5
        assert difference(gradient(text, contexts), gradient(whole, contexts)) <= 1e-5
    assert difference(text(), whole()) <= 1e-5
    assert difference(text.eval()(), whole.eval()()) <= 1e-5


@pytest.mark.parametrize("share", [True, False])
def test_one_context_more_moves_the_ends(share: bool) -> None:
    text = prompted(class_tokens=6, share_prefix=share)
    contexts = contexts_of_images(4)
    expected = by_hand(text, "fire hydrant", contexts[1])
    assert difference(text(contexts)[1, 1], expected) <= 1e-5


def test_the_shared_tower_stays_frozen() -> None:
    text = prompted().train()
    assert gradient(text, contexts_of_images()).abs().sum(dim=2).min() > 0
    assert all(p.grad is None for p in text.encoder.parameters())


@torch.no_grad()
def test_many_names_in_chunks() -> None:
    words = Vocabulary.from_names([str(number) for number in range(100, 947)])
    plain, chunked = prompted(words), prompted(words, chunk=100)
    sizes = count_calls(chunked.encoder.ln_final)
    contexts = contexts_of_images()
    found = chunked(contexts)
    assert found.shape == (2, 847, 24)
    assert sizes == [200] * 8 + [94]
    assert difference(found, plain(contexts)) <= 1e-6


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunks_below_one(chunk: int) -> None:
    with pytest.raises(ConfigError, match=f"chunk {chunk} of the prompts must be at least 1"):
        prompted(chunk=chunk)


def test_blocks_that_cannot_share() -> None:
    encoder = text_encoder(block_type="custom")
    positions = len(encoder.positional_embedding)
    with pytest.raises(ConfigError, match="share_prefix=False"):
        PromptedTextEncoder(encoder, WORDS)
    assert len(encoder.positional_embedding) == positions
    assert PromptedTextEncoder(encoder, WORDS, share_prefix=False)().shape == (1, 4, 24)


@torch.no_grad()
def test_the_room_for_names_changes_nothing() -> None:
    short, long = prompted().eval(), prompted(class_tokens=16).eval()
    assert torch.equal(short.contexts, long.contexts)
    assert difference(long(), short()) <= 1e-5


@torch.no_grad()
def test_tokens_after_the_end_change_nothing() -> None:
    text = prompted().train()
    before = text()
    after_end = torch.arange(text.tokens.shape[1]) > text.ends[:, None]
    assert after_end.sum(dim=1).tolist() == [2, 0, 1, 2]
    text.tokens = torch.where(after_end, 1234, text.tokens)
    assert torch.equal(text(), before)
    text.tokens[0, 1] = 1234
    assert not torch.allclose(text()[0, 0], before[0, 0])


def test_initial_contexts() -> None:
    text = prompted(num_contexts=60, context_std=1.0)
    assert text.contexts.shape == (1, 60, 16)
    assert text.contexts.abs().max() <= 2 and text.contexts.std().item() == pytest.approx(0.88, 0.1)
    small = prompted(num_contexts=60, context_std=0.02).contexts
    assert small.abs().max() <= 0.04 and small.std().item() == pytest.approx(0.0176, 0.1)


def test_the_tower_is_frozen_for_real() -> None:
    text = prompted().train()
    assert not any(module.training for module in text.encoder.modules())
    text().square().sum().backward()
    assert text.contexts.grad.abs().sum(dim=2).min() > 0
    assert [name for name, p in text.named_parameters() if p.requires_grad] == ["contexts"]
    assert all(p.grad is None for p in text.encoder.parameters())


def test_an_unfrozen_tower_trains() -> None:
    text = prompted(frozen=False).train()
    assert text.encoder.training
    text().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in text.parameters())


def test_evaluation_runs_the_tower_once() -> None:
    text = prompted().eval()
    calls = count_calls(text.encoder.ln_final)
    first = text()
    assert calls == [4] and not first.requires_grad
    assert text() is first and calls == [4]
    with torch.inference_mode():
        assert text() is first
    text(text.contexts)
    assert calls == [4, 4]  # contexts that are handed in are never kept


def move_double(text: PromptedTextEncoder) -> None:
    text.double()


def round_to_half(text: PromptedTextEncoder) -> None:
    text.half().float()


def round_in_parent(text: PromptedTextEncoder) -> None:
    nn.Sequential(text).half().float()


def load_into_parent(text: PromptedTextEncoder) -> None:
    state = {f"0.{k}": v + 0.01 for k, v in text.state_dict().items()}
    nn.Sequential(text).load_state_dict(state)


def load_into_tower(text: PromptedTextEncoder) -> None:
    text.encoder.load_state_dict({k: v + 0.01 for k, v in text.encoder.state_dict().items()})


def assign_weights(text: PromptedTextEncoder) -> None:
    text.load_state_dict({k: v + 0.01 for k, v in text.state_dict().items()}, assign=True)


def optimizer_step(text: PromptedTextEncoder) -> None:
    text.contexts.grad = torch.ones_like(text.contexts)
    torch.optim.AdamW([text.contexts], lr=0.1).step()


def change_vocabulary(text: PromptedTextEncoder) -> None:
    text.set_vocabulary(Vocabulary.parse("bird;tree"))


@pytest.mark.parametrize(
    "change",
    [
        move_double,
        round_to_half,
        round_in_parent,
        load_into_parent,
        load_into_tower,
        assign_weights,
        optimizer_step,
        change_vocabulary,
    ],
)
def test_the_kept_embeddings_fall_with_a_change(change: Callable[[Any], None]) -> None:
    text = prompted().eval()
    before = text()
    calls = count_calls(text.encoder.ln_final)
    change(text)
    after = text()
    assert len(calls) == 1
    torch.testing.assert_close(after, text(text.contexts))
    assert after.dtype == text.contexts.dtype
    assert change is move_double or not torch.equal(before, after)


def test_training_drops_the_kept_embeddings() -> None:
    text = prompted().eval()
    text()
    calls = count_calls(text.encoder.ln_final)
    assert text.train()().requires_grad
    text.contexts.data.add_(1)  # also a change that leaves no trace on the parameter
    after = text.eval()()
    assert len(calls) == 2
    torch.testing.assert_close(after, text(text.contexts))


def test_evaluation_in_inference_mode_then_training() -> None:
    text = prompted().eval()
    with torch.inference_mode():
        text.set_vocabulary(Vocabulary.parse("bird;tree"))
        found = text()
    assert not found.is_inference()
    scale = nn.Parameter(torch.ones(24))
    (scale * text()).sum().backward()  # what was kept can take part in training
    assert scale.grad.abs().sum() > 0
    text.train()().sum().backward()
    assert text.contexts.grad.abs().sum() > 0


def test_kept_embeddings_are_in_full_precision() -> None:
    text = prompted().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = text()
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, text())
        assert not torch.equal(text(text.contexts).float(), found)
    torch.testing.assert_close(found, text(text.contexts))


def test_names_of_a_vocabulary_file_are_cleaned() -> None:
    text = prompted(Vocabulary.from_names(["traffic_light", "bed "]))
    spaced = prompted(Vocabulary.from_names(["traffic light", "bed"]))
    assert torch.equal(text.tokens, spaced.tokens)


def test_a_name_over_the_budget() -> None:
    long = Category("furniture", ("table", "chest of old drawers"))
    words = Vocabulary((Category("wall"), long))
    with pytest.raises(VocabularyError) as caught:
        prompted(words)
    for part in ("'furniture'", "'chest of old drawers'", "has 4 tokens", "class_tokens=6"):
        assert part in str(caught.value)
    assert prompted(words, class_tokens=6).tokens.shape == (3, 6)
    text = prompted().eval()
    before = text()
    with pytest.raises(VocabularyError, match="class_tokens=5"):
        text.set_vocabulary(words)
    assert text.vocabulary is WORDS and text() is before


def test_a_name_longer_than_any_context_is_counted_whole() -> None:
    with pytest.raises(VocabularyError, match="has 100 tokens"):
        prompted(Vocabulary.from_names([" ".join(["cat"] * 100)]))


def test_an_empty_vocabulary() -> None:
    with pytest.raises(VocabularyError, match="empty"):
        prompted(Vocabulary(()))


def test_too_few_positions() -> None:
    with pytest.raises(ConfigError, match="prompts of 13 tokens do not fit .* 12 positions"):
        PromptedTextEncoder(text_encoder(12), WORDS)


def test_untrained_words_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    text = prompted().eval()
    with torch.no_grad():
        text.encoder.token_embedding.weight[text.tokens[0, 1]] = 0
    with caplog.at_level("WARNING", logger="densedet"):
        text()
        text()
    assert [record.getMessage().endswith("here: cat") for record in caplog.records] == [True]


def test_a_state_dict_holds_weights_alone() -> None:
    text = prompted()
    own = [name for name in text.state_dict() if not name.startswith("encoder.")]
    assert own == ["contexts"]
    assert text.state_dict()["encoder.positional_embedding"].shape == (8, 16)


@pytest.mark.parametrize(
    "model, millions",
    [("RN50-quickgelu", 63.657), ("RN101-quickgelu", 63.395), ("ViT-B-16-quickgelu", 63.395)],
)
def test_size_of_the_text_tower(model: str, millions: float) -> None:
    with torch.device("meta"):
        text = PromptedTextEncoder(create_text_encoder(model), WORDS)
        assert text().shape == text.eval()().shape == (1, 4, text.embed_dim)
    assert all(tensor.is_meta for tensor in (*text.parameters(), *text.buffers()))
    count = sum(p.numel() for p in text.encoder.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=1e-3)
