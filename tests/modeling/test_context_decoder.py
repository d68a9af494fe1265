"""The context decoder, and scores from what it refines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.modeling.guidance import ContextDecoder, score_map


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def golden(golden_dir: Path) -> dict[str, Any]:
    with np.load(golden_dir / "denseclip_context_decoder.npz") as file:
        arrays = {k: file[k] for k in file.files}
    config = json.loads(str(arrays.pop("config")))
    return {k: torch.from_numpy(v) for k, v in arrays.items()} | {"config": config}


@pytest.fixture
def reference(golden: dict[str, Any]) -> ContextDecoder:
    config = golden["config"]
    decoder = ContextDecoder(
        config["visual_dim"], config["width"], config["heads"], config["layers"]
    )
    prefix = "weights/context_decoder."
    state = {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
    state = {k.replace("decoder.", "layers.", 1): v for k, v in state.items()}
    decoder.load_state_dict(state)
    return decoder.eval()


@pytest.mark.golden
@torch.no_grad()
def test_equals_the_reference(reference: ContextDecoder, golden: dict[str, Any]) -> None:
    text = golden["text"].expand(len(golden["memory"]), -1, -1)
    output = reference(text, golden["memory"])
    assert difference(output, golden["output"]) <= 1e-5
    refined = text + golden["weights/gamma"] * output
    assert difference(refined, golden["text_refined"]) <= 1e-5
    classes = golden["config"]["K"]
    scores = score_map(golden["z_local"], refined, torch.arange(classes), classes)
    assert difference(scores, golden["score_map"]) <= 1e-5
    fused = torch.cat([golden["level"], scores], dim=1)
    assert difference(fused, golden["level_fused"]) <= 1e-5


def by_torch(decoder: ContextDecoder, heads: int) -> nn.TransformerDecoder:
    """The same layers as torch's own, which has biases on queries, keys and values: set to zero."""
    state = decoder.state_dict()
    width = state["out_proj.0.weight"].numel()
    count = len(decoder.layers)
    layer = nn.TransformerDecoderLayer(
        width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    theirs = nn.TransformerDecoder(layer, count)
    renamed: dict[str, Tensor] = {}
    for i in range(count):
        for ours, name in (("self_attn", "self_attn"), ("cross_attn", "multihead_attn")):
            parts = [state[f"layers.{i}.{ours}.{p}_proj.weight"] for p in "qkv"]
            renamed[f"layers.{i}.{name}.in_proj_weight"] = torch.cat(parts)
            renamed[f"layers.{i}.{name}.in_proj_bias"] = torch.zeros(3 * width)
            for kind in ("weight", "bias"):
                key = f"layers.{i}.{ours}.proj.{kind}"
                renamed[f"layers.{i}.{name}.out_proj.{kind}"] = state[key]
        for kind in ("weight", "bias"):
            for norm in ("norm1", "norm2", "norm3"):
                renamed[f"layers.{i}.{norm}.{kind}"] = state[f"layers.{i}.{norm}.{kind}"]
            renamed[f"layers.{i}.linear1.{kind}"] = state[f"layers.{i}.mlp.0.{kind}"]
            renamed[f"layers.{i}.linear2.{kind}"] = state[f"layers.{i}.mlp.3.{kind}"]
    theirs.load_state_dict(renamed)
    return theirs.eval()


@torch.no_grad()
def test_equals_torchs_decoder_layers() -> None:
    torch.manual_seed(0)
    decoder = ContextDecoder(12, width=32, heads=4, layers=2, query_dim=20).eval()
    for parameter in decoder.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    queries, memory = torch.randn(2, 5, 20), torch.randn(2, 7, 12)
    inner = by_torch(decoder, 4)(decoder.text_proj(queries), decoder.memory_proj(memory))
    found = decoder(queries, memory)
    assert found.shape == (2, 5, 20)
    torch.testing.assert_close(found, decoder.out_proj(inner), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("embed_dim, millions", [(1024, 3.9488), (512, 3.5530)])
def test_parameters(embed_dim: int, millions: float) -> None:
    with torch.device("meta"):
        decoder = ContextDecoder(embed_dim)
    count = sum(p.numel() for p in decoder.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=5e-5)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    decoder = ContextDecoder(64, width=64)
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or not module.bias.any()


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    decoder = ContextDecoder(8, width=16, heads=2, layers=1)
    queries, memory = torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    assert not torch.equal(decoder(queries, memory), decoder(queries, memory))
    decoder.eval()
    assert torch.equal(decoder(queries, memory), decoder(queries, memory))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="3 heads do not divide a context decoder 32 wide"):
        ContextDecoder(8, width=32, heads=3)


def test_scores_are_cosines_and_names_of_a_category_compete() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(2, 6, 3, 4, generator=generator)
    text = torch.randn(2, 5, 6, generator=generator)
    expected = F.cosine_similarity(dense[:, None], text[..., None, None], dim=2)
    found = score_map(100 * dense, text / 100, torch.arange(5), 5)
    torch.testing.assert_close(found, expected)
    groups = torch.tensor([0, 1, 1, 2, 2])
    merged = score_map(dense, text, groups, 3)
    parts = [expected[:, groups == k].amax(dim=1) for k in range(3)]
    torch.testing.assert_close(merged, torch.stack(parts, dim=1))


def test_scores_stay_in_range_and_full_precision() -> None:
    dense = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    text = torch.cat([dense[:, :, 0, 0], -dense[:, :, 0, 0]])[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score_map(dense, text, torch.arange(2), 2)
    assert scores.dtype == torch.float32
    assert scores[0, :, 0, 0].tolist() == pytest.approx([1, -1], abs=1e-6)
    assert scores.abs().max() <= 1 + 1e-6
