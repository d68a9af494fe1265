"""The attention of ViT blocks against open_clip's own: the same results, on another way."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from densedet.clip import build_visual
from densedet.clip.vit import SelfAttention

SIZES = [(1, 32, 32), (2, 16, 40), (3, 64, 24)]


@pytest.fixture
def pair(make_clip: Any) -> tuple[Any, Any]:
    """Our tower, and one of the same weights whose blocks attend as open_clip's do."""
    visual = build_visual(make_clip("vit", {"heads": 4})).eval()
    theirs = copy.deepcopy(visual)
    for block in theirs.tower.transformer.resblocks:
        assert type(block.attn) is SelfAttention
        block.attn.__class__ = nn.MultiheadAttention
    return visual, theirs


def _outputs(visual: Any, images: Tensor) -> list[Tensor]:
    found = visual(images, taps=visual.tap_names)
    return [*found.taps.values(), found.dense, found.pooled]


def _masks(count: int, height: int, width: int) -> list[Tensor]:
    grid = (height // 8, width // 8)
    return [torch.rand(k, *grid) < 0.5 for k in range(count)]


@pytest.mark.parametrize("size", SIZES)
def test_results_and_gradients(pair: tuple[Any, Any], size: tuple[int, int, int]) -> None:
    """Every tap, the dense map, the image embedding, masks; images that are not square."""
    count, height, width = size
    images = torch.randn(count, 3, height, width)
    masks = _masks(*size)
    results, gradients = [], []
    for visual in pair:
        with torch.no_grad():
            results.append([*_outputs(visual, images), visual.attend_masks(images, masks)])
        sum(output.square().mean() for output in _outputs(visual, images)).backward()
        found = [p.grad for p in visual.parameters() if p.grad is not None]
        gradients.append(found)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
    assert len(gradients[0]) > 20
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_way(pair: tuple[Any, Any], autocast: bool) -> None:
    """No weights [B, heads, N, N] are made; torch's own module makes them without autocast."""
    images = torch.randn(2, 3, 32, 48)
    dtypes, names = [], []
    for visual in pair:
        with (
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            profile(activities=[ProfilerActivity.CPU]) as called,
        ):
            dtypes.append([output.dtype for output in _outputs(visual, images)])
        names.append({event.name for event in called.events()})
    assert dtypes[0] == dtypes[1]
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert fused in names[0] and "aten::_native_multi_head_attention" not in names[0]
    assert ("aten::_native_multi_head_attention" in names[1]) is not autocast


def test_what_is_no_self_attention_is_left_to_torch() -> None:
    torch.manual_seed(0)
    ours = SelfAttention(12, 3, batch_first=True).eval()
    theirs = nn.MultiheadAttention(12, 3, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    x, other = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    calls: list[dict[str, Any]] = [
        {"query": x, "key": other, "value": other},
        {"query": x, "key": x, "value": x, "need_weights": True},
        {"query": x, "key": x, "value": x, "key_padding_mask": torch.zeros(2, 5, dtype=bool)},
    ]
    for call in calls:
        torch.testing.assert_close(ours(**call), theirs(**call))
