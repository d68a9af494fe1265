"""What all families share: requests, sizes, statistics, gradients, the real architectures."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densedet.clip import build_visual, create_visual
from densedet.clip.visual import ClipVisual
from densedet.errors import ConfigError

FAMILIES = ["eva", "vit", "resnet"]


@pytest.fixture(params=FAMILIES)
def visual(request: pytest.FixtureRequest, make_clip: Any) -> ClipVisual:
    return build_visual(make_clip(request.param))


def images(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def calls(visual: ClipVisual) -> dict[str, int]:
    """Count the calls of every sub-module from now on."""
    counts: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            counts[name] = counts.get(name, 0) + 1

        return hook

    for name, module in visual.tower.named_modules():
        module.register_forward_hook(count(name))
    return counts


@torch.no_grad()
def test_each_output_is_the_same_alone_and_with_the_others(visual: ClipVisual) -> None:
    batch = images(96, 64)
    everything = visual(batch, taps=visual.tap_names)
    assert set(everything.taps) == set(visual.tap_names)
    for name in visual.tap_names:
        alone = visual(batch, taps=[name], dense=False, pooled=False)
        assert alone.dense is None and alone.pooled is None and list(alone.taps) == [name]
        torch.testing.assert_close(alone.taps[name], everything.taps[name])
    torch.testing.assert_close(visual(batch, pooled=False).dense, everything.dense)
    torch.testing.assert_close(visual.embed_images(batch), everything.pooled)


@torch.no_grad()
def test_shapes_channels_and_strides(visual: ClipVisual) -> None:
    found = visual(images(64, 96), taps=visual.tap_names)
    side = visual.stride
    assert found.dense.shape == (2, visual.embed_dim, 64 // side, 96 // side)
    assert found.pooled.shape == (2, visual.embed_dim)
    for name, tap in found.taps.items():
        stride = visual.tap_strides[name]
        assert tap.shape == (2, visual.tap_channels[name], 64 // stride, 96 // stride)
    norms = found.dense.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_native_image_embedding_equals_open_clip(make_clip: Any, family: str) -> None:
    model = make_clip(family)
    batch = images(*build_visual(model).image_size)
    found = build_visual(model).embed_images(batch)
    torch.testing.assert_close(found, model.encode_image(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["eva", "vit"])
@torch.no_grad()
def test_blocks_before_the_last_run_once_and_nothing_unrequested_runs(
    make_clip: Any, family: str
) -> None:
    visual = build_visual(make_clip(family))
    block = {"eva": "trunk.blocks", "vit": "transformer.resblocks"}[family]
    counts = calls(visual)
    visual(images(32, 32), taps=["block0"])
    assert [counts[f"{block}.{i}"] for i in range(3)] == [1, 1, 1]
    counts.clear()
    visual(images(32, 32), pooled=False)
    assert f"{block}.2" not in counts  # its parts run, not its attention
    assert counts[f"{block}.2.mlp"] == 1
    counts.clear()
    visual(images(32, 32), taps=["block0"], dense=False, pooled=False)
    assert f"{block}.0" in counts and f"{block}.1" not in counts and f"{block}.2.mlp" not in counts


@torch.no_grad()
def test_resnet_stops_at_the_last_tap(make_clip: Any) -> None:
    visual = build_visual(make_clip("resnet"))
    counts = calls(visual)
    visual(images(64, 64), taps=["stem", "layer2"], dense=False, pooled=False)
    assert "layer2" in counts and "layer3" not in counts and "attnpool.v_proj" not in counts


@pytest.mark.parametrize("size", [(40, 33), (33, 40), (0, 32)])
def test_size_that_is_no_multiple_of_the_stride(visual: ClipVisual, size: tuple[int, int]) -> None:
    message = f"{size[0]}x{size[1]}.*stride {visual.stride}.*pad it to multiples"
    with pytest.raises(ValueError, match=message) as caught:
        visual(torch.zeros(1, 3, *size))
    assert not isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32)])
def test_input_that_is_no_batch_of_rgb_images(visual: ClipVisual, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\]"):
        visual(torch.zeros(shape))


def test_unknown_tap_is_named_with_the_known_ones(visual: ClipVisual) -> None:
    with pytest.raises(ValueError, match=rf"block7.*{visual.tap_names[-1]}"):
        visual(torch.zeros(1, 3, 96, 96), taps=["block7"])


def test_image_statistics_are_those_of_the_weights(make_clip: Any) -> None:
    model = make_clip("vit")
    assert build_visual(model).pixel_mean == (0.48145466, 0.4578275, 0.40821073)
    model.visual.image_mean, model.visual.image_std = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
    visual = build_visual(model)
    assert visual.pixel_mean == (0.5, 0.5, 0.5)
    assert visual.pixel_std == (0.25, 0.25, 0.25)
    assert visual.image_size == (32, 32)


def test_vit_last_query_and_key_get_zero_gradient(make_clip: Any) -> None:
    visual = build_visual(make_clip("vit"))
    visual(images(32, 48), pooled=False).dense[:, 0].sum().backward()
    blocks = visual.tower.transformer.resblocks
    for parameter in (blocks[-1].attn.in_proj_weight, blocks[-1].attn.in_proj_bias):
        query, key, value = parameter.grad.chunk(3)
        assert not query.any() and not key.any() and value.any()
    assert all(part.any() for part in blocks[0].attn.in_proj_weight.grad.chunk(3))


def test_vit_with_another_stem_and_layer_scale(make_clip: Any) -> None:
    model = make_clip("vit")
    tower = model.visual
    tower.conv1 = nn.Sequential(nn.PixelUnshuffle(8), nn.Conv2d(192, 48, 1))
    tower.transformer.resblocks[-1].ls_1 = nn.Linear(48, 48, bias=False)  # any per-token map
    visual = build_visual(model)
    batch = images(32, 32)
    torch.testing.assert_close(
        visual.embed_images(batch), model.encode_image(batch), rtol=1e-5, atol=1e-5
    )
    before = visual(batch, pooled=False).dense
    with torch.no_grad():
        tower.transformer.resblocks[-1].ls_1.weight.zero_()
    assert not torch.allclose(visual(batch, pooled=False).dense, before)


@pytest.mark.parametrize(
    "attribute, value, reason",
    [
        ("pool_type", "avg", "pooling"),
        ("proj", None, "projection"),
        ("patch_size", (8, 4), "square"),
    ],
)
def test_unsupported_vits_are_refused(
    make_clip: Any, attribute: str, value: Any, reason: str
) -> None:
    model = make_clip("vit")
    setattr(model.visual, attribute, value)
    with pytest.raises(ConfigError, match=reason):
        build_visual(model)


def test_unknown_tower_is_refused(make_clip: Any) -> None:
    model = make_clip("vit")
    model.visual = nn.Identity()
    with pytest.raises(ConfigError, match="Identity"):
        build_visual(model)


@torch.no_grad()
def test_a_copy_is_independent(visual: ClipVisual) -> None:
    batch = images(96, 96)
    before = visual(batch).dense
    teacher = copy.deepcopy(visual)
    for parameter in visual.parameters():
        parameter.zero_()
    assert torch.equal(teacher(batch).dense, before)


def test_training_after_inference_mode(visual: ClipVisual) -> None:
    with torch.inference_mode():
        visual(images(64, 32))
    visual(images(64, 32)).dense[:, 0].sum().backward()


@torch.no_grad()
def test_bfloat16_autocast_is_close(visual: ClipVisual) -> None:
    batch = images(64, 64)
    expected = visual(batch, pooled=False).dense
    with torch.autocast("cpu", torch.bfloat16):
        found = visual(batch, pooled=False).dense
    assert (found.float() * expected).sum(1).min() > 0.98


ARCHITECTURES = [
    ("EVA02-B-16", (224, 224), 16, 512, {"block11": 768}),
    ("EVA02-B-16", (320, 480), 16, 512, {"block3": 768}),
    ("EVA02-B-16", (640, 640), 16, 512, {}),
    ("EVA02-L-14-336", (224, 224), 14, 768, {"block6": 1024, "block23": 1024}),
    ("EVA02-L-14-336", (336, 448), 14, 768, {}),
    ("ViT-B-16-quickgelu", (224, 224), 16, 512, {"block11": 768}),
    ("ViT-B-16-quickgelu", (320, 480), 16, 512, {"block3": 768}),
    ("ViT-B-16-quickgelu", (640, 640), 16, 512, {}),
    ("RN50-quickgelu", (224, 224), 32, 1024, {"stem": 64, "layer4": 2048}),
    ("RN50-quickgelu", (320, 480), 32, 1024, {"layer1": 256, "layer3": 1024}),
    ("RN50-quickgelu", (640, 640), 32, 1024, {"layer2": 512}),
]


@pytest.fixture(scope="module")
def architecture() -> Any:
    """Build a real architecture with uniform weights (open_clip's own start takes most time)."""
    built: dict[str, ClipVisual] = {}

    def get(name: str) -> ClipVisual:
        if name not in built:
            built.clear()
            with torch.device("meta"):
                visual = create_visual(name)
            visual.to_empty(device="cpu")
            with torch.no_grad():
                for parameter in visual.parameters():
                    parameter.uniform_(-0.04, 0.04)
                for buffer in visual.buffers():
                    buffer.fill_(1)
            built[name] = visual.eval()
        return built[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name, size, stride, embed_dim, taps", ARCHITECTURES)
@torch.no_grad()
def test_released_architectures_run_at_other_sizes(
    architecture: Any,
    name: str,
    size: tuple[int, int],
    stride: int,
    embed_dim: int,
    taps: dict[str, int],
) -> None:
    visual = architecture(name)
    assert (visual.stride, visual.embed_dim) == (stride, embed_dim)
    found = visual(images(*size, batch=1), taps=list(taps))
    assert found.dense.shape == (1, embed_dim, size[0] // stride, size[1] // stride)
    assert found.dense.isfinite().all()
    assert {n: tap.shape[1] for n, tap in found.taps.items()} == taps
    for tap_name, tap in found.taps.items():
        assert tap.shape[2] * visual.tap_strides[tap_name] == size[0]
        assert tap.shape[3] * visual.tap_strides[tap_name] == size[1]
    assert found.pooled.shape == (1, embed_dim)
    assert found.pooled.isfinite().all()
