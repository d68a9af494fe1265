"""The count of multiply-adds: by hand, and against fvcore where fvcore counts."""

import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from torch import nn

from densedet.engine.flops import FlopCounter


def count(function, *shapes):
    """FLOPs of a function of meta tensors."""
    with torch.no_grad(), torch.device("meta"), FlopCounter() as counter:
        function(*(torch.zeros(shape) for shape in shapes))
    return counter.total


def brute_force_attention(queries, keys):
    """Count the multiplications of attention one by one; a query is [B, H, L, E]."""
    total = 0
    batch, heads, length, dim = queries
    for _ in range(batch * heads):
        for _query in range(length):
            for _key in range(keys[2]):
                total += dim  # the score
                total += dim  # the key's share in the mixed value
    return total


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys"), [((2, 3, 5, 4), (2, 3, 5, 4)), ((1, 2, 7, 8), (1, 2, 3, 8))]
)
def test_attention_is_its_two_matrix_products(queries, keys, causal):
    """Masked pairs count too, as they do where the products are computed."""
    found = count(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
        queries,
        keys,
        keys,
    )
    assert found == brute_force_attention(queries, keys)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_attention_counts_in_every_form(training, weights, masked):
    """Eval mode without gradients, where torch may take a fused operator, hides nothing."""
    length, dim, heads = 6, 8, 2
    with torch.device("meta"):
        attention = nn.MultiheadAttention(dim, heads, batch_first=True).train(training)
        mask = torch.zeros(length, length) if masked else None
    found = count(
        lambda x: attention(x, x, x, need_weights=weights, attn_mask=mask), (3, length, dim)
    )
    projections = 4 * 3 * length * dim * dim
    assert found == projections + brute_force_attention((3, heads, length, dim // heads), (0, 0, 6))


class Mixture(nn.Module):
    """Every operator that counts, and some that do not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.Sequential(nn.GroupNorm(2, 8), nn.ConvTranspose2d(8, 6, 2, 2))
        self.plain = nn.Sequential(nn.BatchNorm2d(6, affine=False), nn.MaxPool2d(2))
        self.tokens = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.GELU())
        self.last = nn.Linear(5, 3, bias=False)

    def forward(self, images):
        maps = self.plain(self.up(self.grouped(self.stem(images))))
        larger = F.interpolate(maps, size=(9, 7), mode="bilinear", align_corners=False)
        nearest = F.interpolate(maps, scale_factor=2.0, mode="nearest")
        pooled = F.adaptive_avg_pool2d(larger, 2)
        tokens = self.tokens(maps.flatten(2).transpose(1, 2))
        scores = torch.einsum("bnc,bkc->bkn", tokens, tokens[:, :4])
        return self.last(tokens), scores @ tokens, nearest, pooled


@pytest.mark.parametrize("training", [False, True])
def test_all_the_rest_is_fvcores_count(training):
    model = Mixture().train(training)
    images = torch.randn(2, 4, 24, 16)
    theirs = FlopCountAnalysis(model, images).unsupported_ops_warnings(False).total()
    with FlopCounter() as ours:
        model.to("meta")(images.to("meta"))
    assert ours.total == theirs > 1e5


def test_parts():
    """Work counts for the innermost part that is open; other work for none."""
    with torch.device("meta"):
        inner, outer = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 8))
        outer[1].inner = inner
        outer[1].forward = lambda x: F.linear(F.linear(x, outer[1].weight)[:, :4], inner.weight)
        called = nn.Sequential(outer, inner)
        x = torch.zeros(3, 4)
        counter = FlopCounter()
        with torch.no_grad(), counter, counter.modules({"outer": [outer], "inner": [inner]}):
            called(x)  # outer: 4x2, 2x8, 4x4 by function; inner: 4x4
            with counter.part("third"):
                x @ x.T
            x @ x.T
            with pytest.raises(RuntimeError):
                outer(torch.zeros(3, 5))
            x @ x.T  # a failed call leaves its part
        inner(x)
    expected = {"outer": 3 * (8 + 16 + 16), "inner": 3 * 16, "third": 36, "": 72}
    assert dict(counter.flops) == expected and counter.total == sum(expected.values())
    assert not outer._forward_hooks and not inner._forward_pre_hooks


def test_only_on_the_meta_device():
    """Elsewhere fused attention would go uncounted."""
    with pytest.raises(ValueError, match="count on the meta device"), FlopCounter():
        torch.zeros(2, 2) @ torch.zeros(2, 2)
