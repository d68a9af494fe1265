"""The attention pool with every location as a query."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor

from densedet.clip.attention_pool import AttentionPool, attend_all
from densedet.clip.position import resample_positions


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def make_pool(grid: int = 3) -> AttentionPool2d:
    torch.manual_seed(0)
    return AttentionPool2d(grid, 16, num_heads=4, output_dim=6)


def by_definition(pool: Any, x: Tensor, table: Tensor) -> Tensor:
    """One image [C, h, w] -> [1 + hw, E], head by head."""
    tokens = x.flatten(1).T
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + table
    mixed = []
    width = tokens.shape[1] // pool.num_heads
    query, key, value = pool.q_proj(tokens), pool.k_proj(tokens), pool.v_proj(tokens)
    for head in range(pool.num_heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ key[:, part].T / width**0.5
        mixed.append(scores.softmax(dim=-1) @ value[:, part])
    return pool.c_proj(torch.cat(mixed, dim=1))


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "crop"])
def test_full_self_attention_by_definition(mode: Any) -> None:
    pool = make_pool()
    x = maps(2, 16, 2, 3)
    pooled, dense = attend_all(pool, x, mode)
    table = resample_positions(pool.positional_embedding, (2, 3), mode=mode)
    for image in range(2):
        expected = by_definition(pool, x[image], table)
        torch.testing.assert_close(pooled[image], expected[0])
        torch.testing.assert_close(dense[image], expected[1:].T.reshape(6, 2, 3))


def test_pooled_is_that_of_open_clip() -> None:
    pool = make_pool()
    x = maps(2, 16, 3, 3)
    torch.testing.assert_close(attend_all(pool, x, "crop")[0], pool(x))


def test_locations_see_each_other() -> None:
    pool = make_pool()
    x = maps(1, 16, 3, 3)
    changed = x.clone()
    changed[0, :, 2, 2] += 1
    differences = (attend_all(pool, x, "crop")[1] - attend_all(pool, changed, "crop")[1]).abs()
    assert (differences.amax(dim=1) > 1e-4).all()


def test_outputs_are_not_normalised() -> None:
    pooled, dense = attend_all(make_pool(), 10 * maps(1, 16, 3, 3), "bilinear")
    assert not torch.allclose(dense, F.normalize(dense, dim=1), rtol=0.1)
    assert not torch.allclose(pooled, F.normalize(pooled, dim=1), rtol=0.1)


def test_own_pool_has_clips_names_shapes_and_initialisation() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(128, 10, grid=4)
    theirs = AttentionPool2d(4, 128, num_heads=2, output_dim=10)
    assert pool.num_heads == 2  # a head has 64 channels
    shapes = {name: tensor.shape for name, tensor in pool.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
        assert projection.weight.std().item() == pytest.approx(128**-0.5, rel=0.1)
    assert pool.positional_embedding.std().item() == pytest.approx(128**-0.5, rel=0.1)


def test_own_pool_resamples_positions_bilinearly_and_trains() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(16, 6, grid=3, head_dim=8)
    x = maps(2, 16, 4, 2)
    pooled, dense = pool(x)
    expected = attend_all(pool, x, "bilinear")
    torch.testing.assert_close(pooled, expected[0])
    torch.testing.assert_close(dense, expected[1])
    assert not torch.allclose(dense, attend_all(pool, x, "bicubic")[1], atol=1e-4)
    (dense[:, 0].sum() + pooled[:, 1].sum()).backward()
    gradients = {name: p.grad for name, p in pool.named_parameters()}
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values()), gradients.keys()


def test_channels_that_no_heads_divide() -> None:
    with pytest.raises(ValueError, match="100 channels are no multiple of 64"):
        AttentionPool(100, 6, grid=3)
