"""The three ways through the last block, each against plain arithmetic on open_clip's modules."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.clip import build_visual
from densedet.clip.visual import ClipVisual
from densedet.errors import ConfigError


@pytest.fixture(params=["eva", "vit"])
def visual(request: pytest.FixtureRequest, make_clip: Any) -> ClipVisual:
    return build_visual(make_clip(request.param))


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


def unit_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.normalize(tokens, dim=-1).transpose(1, 2).reshape(len(tokens), -1, *grid)


def caught_inputs(visual: ClipVisual, batch: Tensor) -> tuple[Tensor, Tensor]:
    """What enters and what leaves the last block when the whole tower runs as open_clip does."""
    tower: Any = visual.tower
    blocks = tower.trunk.blocks if hasattr(tower, "trunk") else tower.transformer.resblocks
    caught: list[Any] = []
    hook = blocks[-1].register_forward_hook(lambda _, args, output: caught.append((args, output)))
    visual.embed_images(batch)
    hook.remove()
    (args, output) = caught[0]
    return args[0], output


@torch.no_grad()
def test_tokens_are_those_of_the_ordinary_last_block(visual: ClipVisual) -> None:
    batch = images(32, 48)
    _, output = caught_inputs(visual, batch)
    tower: Any = visual.tower
    if hasattr(tower, "trunk"):
        projected = tower.trunk.head(tower.trunk.norm(output[:, 1:]))
    else:
        projected = tower.ln_post(output[:, 1:]) @ tower.proj
    found = visual.dense_map(batch, "tokens")
    torch.testing.assert_close(found, unit_map(projected, (4, 6)), rtol=0, atol=1e-6)


@torch.no_grad()
def test_values_are_the_attention_branch_without_residual_and_mlp(visual: ClipVisual) -> None:
    batch = images(48, 32)
    tokens = caught_inputs(visual, batch)[0][:, 1:]
    tower: Any = visual.tower
    if hasattr(tower, "trunk"):
        block = tower.trunk.blocks[-1]
        values = block.attn.v_proj(block.norm1(tokens))
        projected = tower.trunk.head(tower.trunk.norm(block.attn.proj(block.attn.norm(values))))
    else:
        block = tower.transformer.resblocks[-1]
        weight = block.attn.in_proj_weight.chunk(3)[2]
        values = block.ln_1(tokens) @ weight.T + block.attn.in_proj_bias.chunk(3)[2]
        projected = tower.ln_post(block.attn.out_proj(values)) @ tower.proj
    found = visual.dense_map(batch, "values")
    torch.testing.assert_close(found, unit_map(projected, (6, 4)), rtol=0, atol=1e-6)


@torch.no_grad()
def test_value_is_the_dense_map_of_forward_and_the_default(make_clip: Any) -> None:
    for family in ("eva", "vit", "resnet"):
        visual = build_visual(make_clip(family))
        batch = images(64, 96)
        expected = visual(batch, pooled=False).dense
        torch.testing.assert_close(visual.dense_map(batch), expected)
        torch.testing.assert_close(visual.dense_map(batch, "value"), expected)


@torch.no_grad()
def test_the_three_maps_differ(visual: ClipVisual) -> None:
    batch = images(32, 32)
    maps = [visual.dense_map(batch, path) for path in ("value", "tokens", "values")]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (maps[i] - maps[j]).abs().max() > 0.05


@pytest.mark.parametrize("path", ["tokens", "values"])
def test_resnet_has_the_value_path_only(make_clip: Any, path: Any) -> None:
    visual = build_visual(make_clip("resnet"))
    with pytest.raises(ConfigError, match=f"'{path}' needs a transformer.*ModifiedResNet.*'value'"):
        visual.dense_map(images(64, 64), path)


def test_unknown_path_and_size(visual: ClipVisual) -> None:
    unknown: Any = "keys"
    with pytest.raises(ConfigError, match="no dense path 'keys'; there are value, tokens, values"):
        visual.dense_map(images(32, 32), unknown)
    with pytest.raises(ValueError, match="40x33"):
        visual.dense_map(torch.zeros(1, 3, 40, 33), "tokens")
