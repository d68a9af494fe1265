"""EVA: an independent plain-torch forward, written from the equations, and what must be refused."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.clip import build_visual
from densedet.clip.checkpoints import to_eva_clip_keys
from densedet.errors import ConfigError

HEADS, DEPTH, PATCH, REFERENCE = 3, 3, 8, 16


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resize_matrix(size: int, new: int) -> Tensor:
    """Bicubic, half-pixel centres, border cells repeated, never antialiased."""
    matrix = torch.zeros(new, size, dtype=torch.float64)
    for i in range(new):
        centre = (i + 0.5) * size / new - 0.5
        for j in range(int(centre // 1) - 1, int(centre // 1) + 3):
            matrix[i, min(max(j, 0), size - 1)] += cubic(centre - j)
    return matrix


def layer_norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def rotate(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """x [B, heads, 1 + hw, d]: turn adjacent pairs of every patch token, leave CLS."""
    dim = x.shape[-1]
    out = x.clone()
    for token in range(grid[0] * grid[1]):
        row, column = divmod(token, grid[1])
        turns = [(row / grid[0] * REFERENCE, 0), (column / grid[1] * REFERENCE, dim // 2)]
        for t, offset in turns:
            for j in range(dim // 4):
                angle = torch.tensor(t * 10000 ** (-2 * j / (dim // 2)), dtype=x.dtype)
                a, b = offset + 2 * j, offset + 2 * j + 1
                left, right = x[..., token + 1, a], x[..., token + 1, b]
                out[..., token + 1, a] = left * angle.cos() - right * angle.sin()
                out[..., token + 1, b] = right * angle.cos() + left * angle.sin()
    return out


def attention(x: Tensor, w: dict[str, Tensor], p: str, grid: tuple[int, int]) -> Tensor:
    q = x @ w[f"{p}.q_proj.weight"].T + w[f"{p}.q_bias"]
    k = x @ w[f"{p}.k_proj.weight"].T
    v = x @ w[f"{p}.v_proj.weight"].T + w[f"{p}.v_bias"]
    q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (q, k, v))
    scores = rotate(q, grid) @ rotate(k, grid).transpose(-1, -2) / q.shape[-1] ** 0.5
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    mixed = layer_norm(mixed, w, f"{p}.inner_attn_ln")
    return mixed @ w[f"{p}.proj.weight"].T + w[f"{p}.proj.bias"]


def value_path(x: Tensor, w: dict[str, Tensor], p: str) -> Tensor:
    v = layer_norm(x @ w[f"{p}.v_proj.weight"].T + w[f"{p}.v_bias"], w, f"{p}.inner_attn_ln")
    return v @ w[f"{p}.proj.weight"].T + w[f"{p}.proj.bias"]


def mlp(x: Tensor, w: dict[str, Tensor], p: str) -> Tensor:
    gate = x @ w[f"{p}.w1.weight"].T + w[f"{p}.w1.bias"]
    hidden = gate * torch.sigmoid(gate) * (x @ w[f"{p}.w2.weight"].T + w[f"{p}.w2.bias"])
    hidden = layer_norm(hidden, w, f"{p}.ffn_ln")
    return hidden @ w[f"{p}.w3.weight"].T + w[f"{p}.w3.bias"]


def reference(w: dict[str, Tensor], images: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    """Block outputs of the dense path, the dense map and the image embedding."""
    w = {k.removeprefix("visual."): v.double() for k, v in w.items()}
    images = images.double()
    grid = (images.shape[2] // PATCH, images.shape[3] // PATCH)
    patches = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # B 3 h w p p
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    patches = patches @ w["patch_embed.proj.weight"].flatten(1).T + w["patch_embed.proj.bias"]
    native = round((w["pos_embed"].shape[1] - 1) ** 0.5)
    table = w["pos_embed"][0, 1:].reshape(native, native, -1)
    rows, columns = resize_matrix(native, grid[0]), resize_matrix(native, grid[1])
    table = torch.einsum("yr,xc,rcd->yxd", rows, columns, table).flatten(0, 1)
    x = torch.cat([w["cls_token"].expand(len(images), 1, -1), patches], 1)
    x = x + torch.cat([w["pos_embed"][0, :1], table])
    outputs = []
    for i in range(DEPTH):
        p = f"blocks.{i}"
        h = layer_norm(x, w, f"{p}.norm1")
        plain = x + attention(h, w, f"{p}.attn", grid)
        x = plain if i < DEPTH - 1 else x + value_path(h, w, f"{p}.attn")
        plain, x = (y + mlp(layer_norm(y, w, f"{p}.norm2"), w, f"{p}.mlp") for y in (plain, x))
        outputs.append(x)
    dense, pooled = (
        layer_norm(y, w, "norm") @ w["head.weight"].T + w["head.bias"]
        for y in (x[:, 1:], plain[:, 0])
    )
    dense = dense / dense.norm(dim=-1, keepdim=True)
    return outputs, dense.transpose(1, 2).reshape(len(images), -1, *grid), pooled


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (16, 56), (24, 8)])
@torch.no_grad()
def test_equals_the_equations(make_clip: Any, size: tuple[int, int]) -> None:
    model = make_clip("eva")
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    weights = to_eva_clip_keys(model.state_dict())
    blocks, dense, pooled = reference(weights, images)
    visual = build_visual(model)
    found = visual(images, taps=visual.tap_names)
    for i, block in enumerate(blocks):
        tokens = found.taps[f"block{i}"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(tokens.double(), block[:, 1:], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found.dense.double(), dense, rtol=0, atol=3e-6)
    torch.testing.assert_close(found.pooled.double(), pooled, rtol=1e-4, atol=2e-5)


def test_last_query_and_key_get_no_gradient_through_the_dense_map(make_clip: Any) -> None:
    model = make_clip("eva")
    visual = build_visual(model)
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    visual(images, pooled=False).dense[:, 0].sum().backward()
    gradients = {name: p.grad for name, p in model.visual.trunk.named_parameters()}
    without = [name for name, gradient in gradients.items() if gradient is None]
    last = ("q_proj.weight", "q_proj.bias", "k_proj.weight")
    assert without == [f"blocks.2.attn.{name}" for name in last]
    assert all(g.any() for g in gradients.values() if g is not None)


@torch.no_grad()
def test_fused_projections_give_the_same(make_clip: Any) -> None:
    separate, fused = make_clip("eva"), make_clip("eva", {"qkv_fused": True}, seed=None)
    state = {}
    for name, tensor in separate.state_dict().items():
        stem = name.removesuffix("q_proj.weight")
        if stem != name:
            parts = [separate.state_dict()[f"{stem}{x}_proj.weight"] for x in "qkv"]
            state[f"{stem}qkv.weight"] = torch.cat(parts)
        elif name.endswith(("q_proj.bias", "v_proj.bias")):
            state[name.replace("_proj.bias", "_bias")] = tensor
        elif not name.endswith(("k_proj.weight", "v_proj.weight")):
            state[name] = tensor
    fused.load_state_dict(state)
    images = torch.randn(1, 3, 40, 24, generator=torch.Generator().manual_seed(1))
    expected, found = build_visual(separate)(images), build_visual(fused)(images)
    torch.testing.assert_close(found.dense, expected.dense, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=1e-5, atol=1e-5)


def test_native_size_equals_open_clip(make_clip: Any) -> None:
    model = make_clip("eva")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = build_visual(model).embed_images(images)
    torch.testing.assert_close(found, model.encode_image(images), rtol=1e-5, atol=1e-5)


def test_naflex_trunk_is_refused_and_the_variable_named(
    make_clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_clip("eva")
    monkeypatch.setenv("TIMM_USE_NAFLEX", "1")
    with torch.device("meta"):
        model.visual.trunk = timm.create_model("eva02_base_patch16_clip_224", num_classes=8)
    with pytest.raises(ConfigError, match="unset TIMM_USE_NAFLEX"):
        build_visual(model)


@pytest.mark.parametrize(
    "trunk, reason",
    [
        ("eva02_enormous_patch14_clip_224", "EvaBlockPostNorm"),
        ("eva02_tiny_patch14_224", "'avg' pooling|norm before the blocks or after pooling"),
        ("vit_tiny_patch16_224", "built VisionTransformer"),
    ],
)
def test_other_timm_trunks_are_refused(make_clip: Any, trunk: str, reason: str) -> None:
    model = make_clip("eva")
    with torch.device("meta"):
        model.visual.trunk = timm.create_model(trunk, num_classes=8)
    with pytest.raises(ConfigError, match=reason):
        build_visual(model)


def test_layer_scale_is_refused(make_clip: Any) -> None:
    model = make_clip("eva")
    model.visual.trunk.blocks[1].gamma_1 = torch.nn.Parameter(torch.ones(48))
    with pytest.raises(ConfigError, match="layer scale"):
        build_visual(model)


def test_dense_map_is_of_unit_vectors(make_clip: Any) -> None:
    dense = build_visual(make_clip("eva"))(torch.randn(1, 3, 24, 32), pooled=False).dense
    torch.testing.assert_close(F.normalize(dense, dim=1), dense)
    assert dense.shape == (1, 20, 3, 4)
