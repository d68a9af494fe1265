"""CLIP towers as trainable trunks with embeddings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.layers import get_norm
from detectron2.modeling.backbone import FPN
from open_clip.transformer import LayerScale
from torch import Tensor, nn

from densedet.clip import create_aligned_visual
from densedet.clip.factory import build_visual
from densedet.clip.tiny import build_tiny_clip
from densedet.modeling.backbone import (
    DENSE_EMBEDDING,
    POOLED_EMBEDDING,
    AlignedResNet,
    AlignedViT,
    image_statistics,
)
from densedet.weights import load_strictly

LEVELS = ["res2", "res3", "res4", "res5"]
BLOCKS = ["block0", "block1", "block2", "block3"]  # of the tiny ViTs
TOLERANCE = 1e-5


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


# Golden vectors


class Golden:
    """The ViT of the reference: config, our names -> weights, and arrays."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as stored:
            arrays = {key: np.array(stored[key]) for key in stored.files}
        self.config = json.loads(str(arrays.pop("config")))
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        prefix = "weights/backbone."
        self.state = {
            own_name(k.removeprefix(prefix)): v for k, v in tensors.items() if k.startswith(prefix)
        }
        self.arrays = {k: v for k, v in tensors.items() if not k.startswith("weights/")}

    def build(self, positions: str = "bilinear", double_class_embedding: bool = True) -> AlignedViT:
        config = self.config
        vision = {
            "image_size": config["input_resolution"],
            "patch_size": config["patch"],
            "width": config["width"],
            "head_width": config["width"] // config["heads"],
            "layers": config["layers"],
        }
        text = {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
        settings = {"embed_dim": config["embed_dim"], "vision_cfg": vision, "text_cfg": text}
        visual: Any = build_visual(build_tiny_clip({**settings, "quick_gelu": True}))
        visual.positions = positions
        visual.double_class_embedding = double_class_embedding
        taps = [f"block{index}" for index in config["out_indices"]]
        trunk = AlignedViT(visual, taps=taps, norm="BN")
        load_strictly(trunk, self.state, "the reference")
        return trunk.eval()

    def sizes(self) -> list[str]:
        return [f"{height}x{width}" for _, height, width in self.config["sizes"]]


def own_name(name: str) -> str:
    """``fpn1.4.bias`` is ``levels.0.4.bias``, a group norm alone is ``levels.2.0``."""
    first, _, rest = name.partition(".")
    if not first.startswith("fpn"):
        return f"visual.tower.{name}"
    position = rest if rest[0].isdigit() else f"0.{rest}"
    return f"levels.{int(first.removeprefix('fpn')) - 1}.{position}"


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir / "denseclip_vit.npz")


@pytest.mark.golden
def test_reference_vit(golden: Golden) -> None:
    trunk = golden.build()
    compared = 0
    for size in golden.sizes():
        with torch.no_grad():
            found = trunk(golden.arrays[f"{size}/image"])
        named = {f"f{i}": found[level] for i, level in enumerate(LEVELS)}
        named |= {"global": found[POOLED_EMBEDDING], "local": found[DENSE_EMBEDDING]}
        for name, value in named.items():
            expected = golden.arrays.get(f"{size}/{name}")
            if expected is not None:  # not every level at every size
                assert relative(value, expected) <= TOLERANCE, (size, name)
                compared += 1
    assert compared == len(golden.arrays) - len(golden.sizes())


@pytest.mark.golden
def test_single_class_embedding_misses_the_reference(golden: Golden) -> None:
    trunk = golden.build(double_class_embedding=False)
    for size in golden.sizes():
        with torch.no_grad():
            found = trunk(golden.arrays[f"{size}/image"])
        for name, key in [("global", POOLED_EMBEDDING), ("local", DENSE_EMBEDDING)]:
            assert relative(found[key], golden.arrays[f"{size}/{name}"]) > 0.01, (size, name)


@pytest.mark.golden
def test_bicubic_positions_miss_the_reference(golden: Golden) -> None:
    trunk = golden.build(positions="bicubic")
    errors = []  # an image of the table's own size fits in every mode
    for size in golden.sizes():
        with torch.no_grad():
            found = trunk(golden.arrays[f"{size}/image"])
        errors.append(relative(found[DENSE_EMBEDDING], golden.arrays[f"{size}/local"]))
    assert max(errors) > 1e-3


# ResNet


def test_resnet_outputs(make_visual: Any) -> None:
    trunk = AlignedResNet(make_visual("resnet")).eval()
    found = trunk(images(2, 3, 64, 96))
    assert list(found) == [*LEVELS, DENSE_EMBEDDING, POOLED_EMBEDDING]
    shapes = trunk.output_shape()
    assert {n: s.stride for n, s in shapes.items()} == dict(
        zip(LEVELS, (4, 8, 16, 32), strict=True)
    )
    for name, shape in shapes.items():
        assert found[name].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert trunk.embed_dim == 24 and trunk.size_divisibility == 32
    assert found[DENSE_EMBEDDING].shape == (2, 24, 2, 3)
    assert found[POOLED_EMBEDDING].shape == (2, 24)
    expected = trunk.visual.embed_locations(images(2, 3, 64, 96), ["layer3"])
    torch.testing.assert_close(found["res4"], expected.taps["layer3"])
    torch.testing.assert_close(found[DENSE_EMBEDDING], expected.dense)


def test_resnet_takes_odd_sizes(make_visual: Any) -> None:
    found = AlignedResNet(make_visual("resnet"), aligned=False)(images(2, 3, 75, 107))
    sizes = [tuple(found[name].shape[2:]) for name in LEVELS]
    assert sizes == [(19, 27), (9, 13), (4, 6), (2, 3)]


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("kind", ["resnet", "b16"])
def test_all_parameters_train(make_visual: Any, kind: str, aligned: bool) -> None:
    visual = make_visual(kind).requires_grad_(False)
    for module in visual.modules():  # open_clip starts every bn3 at 0: no gradient behind it
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    trunk = build(visual, aligned).train()
    found = trunk(images(2, 3, 64, 64))
    assert list(found) == LEVELS + [DENSE_EMBEDDING, POOLED_EMBEDDING] * aligned
    assert (trunk.embed_dim is None) is not aligned
    sum((value**2).sum() for value in found.values()).backward()
    gradients = {name: p.grad for name, p in trunk.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert any("attnpool" in name or name.endswith("tower.proj") for name in gradients) is aligned


def build(visual: Any, aligned: bool = True, **options: Any) -> AlignedResNet | AlignedViT:
    if "layer1" in visual.tap_channels:
        return AlignedResNet(visual, aligned)
    return AlignedViT(visual, aligned, taps=BLOCKS, **options)


def test_detectron2s_fpn_takes_the_levels(make_visual: Any) -> None:
    for kind in ("resnet", "b16"):
        fpn = FPN(build(make_visual(kind)), LEVELS, 8)
        found = fpn(images(1, 3, 64, 96))
        assert {name: tuple(p.shape[2:]) for name, p in found.items()} == {
            "p2": (16, 24), "p3": (8, 12), "p4": (4, 6), "p5": (2, 3),
        }  # fmt: skip
        assert fpn.size_divisibility == 32


# ViT


def test_vit_levels(make_visual: Any) -> None:
    trunk = build(make_visual("b16"), norm="BN").eval()
    kinds = [[type(layer) for layer in level] for level in trunk.levels]
    deconvolution = nn.ConvTranspose2d
    assert kinds[0][:2] == [nn.GroupNorm, deconvolution]
    assert kinds[0][3:] == [nn.GELU, deconvolution] and issubclass(kinds[0][2], nn.BatchNorm2d)
    assert kinds[1:] == [
        [nn.GroupNorm, deconvolution],
        [nn.GroupNorm],
        [nn.GroupNorm, nn.MaxPool2d],
    ]
    found = trunk(images(2, 3, 64, 96))
    taps = trunk.visual.embed_locations(images(2, 3, 64, 96), BLOCKS).taps
    normed = [nn.functional.group_norm(taps[name], 1) for name in BLOCKS]  # norms start at 1 and 0
    torch.testing.assert_close(found["res4"], normed[2])
    torch.testing.assert_close(found["res5"], nn.functional.max_pool2d(normed[3], 2))
    assert [tuple(found[name].shape[2:]) for name in LEVELS] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_other_patches_and_scales(make_visual: Any) -> None:
    finer = AlignedViT(make_visual("b16"), taps=BLOCKS, scales=(2, 1, 0.5, 0.25), norm="")
    strides = {name: shape.stride for name, shape in finer.output_shape().items()}
    assert strides == dict(zip(LEVELS, (8, 16, 32, 64), strict=True))
    assert finer.size_divisibility == 64
    assert tuple(finer(images(1, 3, 64, 128))["res5"].shape[2:]) == (1, 2)
    fourteen = AlignedViT(make_visual("l14"), taps=BLOCKS)
    assert [s.stride for s in fourteen.output_shape().values()] == [3.5, 7, 14, 28]
    assert fourteen.size_divisibility == 28
    fine = AlignedViT(make_visual("b16"), taps=BLOCKS[:1], scales=(4,))
    assert fine.size_divisibility == 16  # the tower needs more than the level


@pytest.mark.parametrize("aligned", [True, False])
def test_no_block_stays_behind_the_last_tap(
    make_visual: Any, without_gradient: Any, aligned: bool
) -> None:
    """Without embeddings they would never get a gradient."""
    visual, whole = (
        make_visual("b16"),
        AlignedViT(make_visual("b16"), taps=BLOCKS[:3], scales=(4, 2, 1)),
    )
    trunk = AlignedViT(visual, aligned, taps=BLOCKS[:3], scales=(4, 2, 1))
    trunk.load_state_dict(whole.state_dict(), strict=aligned)
    found, expected = (model(images(2, 3, 64, 64)) for model in (trunk, whole))
    for name in LEVELS[:3]:
        torch.testing.assert_close(found[name], expected[name])
    sum((value**2).sum() for value in found.values()).backward()
    assert without_gradient(trunk) == []
    assert len(visual.tower.transformer.resblocks) == visual.depth == (4 if aligned else 3)
    assert visual.tap_names == tuple(BLOCKS[: visual.depth])


def test_the_default_norm_is_detectron2s_batch_norm(make_visual: Any) -> None:
    norm = build(make_visual("b16")).levels[0][2]
    assert type(norm) is type(get_norm("BN", 32))


def test_vit_refuses(make_visual: Any) -> None:
    with pytest.raises(
        ValueError, match=r"no such taps \['block5', 'block7', 'block11'\]; there are block0,"
    ):
        AlignedViT(make_visual("b16"))
    with pytest.raises(ValueError, match="4 taps for 1 scales"):
        AlignedViT(make_visual("b16"), taps=BLOCKS, scales=(4,))
    with pytest.raises(ValueError, match="scale 3: a tap can be resized by"):
        AlignedViT(make_visual("b16"), taps=BLOCKS[:1], scales=(3,))
    scaled = make_visual("b16")
    scaled.tower.transformer.resblocks[0].ls_1 = LayerScale(32, 0.1)
    with pytest.raises(ValueError, match="layer scale, which this tower has"):
        build(scaled, drop_path=0.1)


# Drop path


def test_drop_path_grows_over_the_blocks_and_adds_no_keys(make_visual: Any) -> None:
    plain, dropping = build(make_visual("b16")), build(make_visual("b16"), drop_path=0.3)
    blocks: Any = dropping.visual.tower.transformer.resblocks
    for branch in ("ls_1", "ls_2"):
        rates = [getattr(block, branch).drop_prob for block in blocks]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    dropping.load_state_dict(plain.state_dict())
    batch = images(1, 3, 64, 64)
    expected = plain.eval()(batch)
    torch.testing.assert_close(dropping.eval()(batch), expected)


def test_drop_path_drops_branches_of_whole_images(make_visual: Any) -> None:
    visual = make_visual("b16")
    trunk = build(visual, drop_path=0.5).train()
    block = visual.tower.transformer.resblocks[-1]
    seen: list[tuple[Tensor, Tensor]] = []
    block.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    torch.manual_seed(0)
    with torch.no_grad():
        trunk(images(1, 3, 32, 32).expand(16, -1, -1, -1))
        before, after = seen[0]
        kept = set()
        for tokens, output in zip(before, after, strict=True):
            for attended in (0, 2):  # a branch is dropped or doubled
                middle = tokens[None] + attended * block.attention(block.ln_1(tokens[None]))
                for fed in (0, 2):
                    expected = middle + fed * block.mlp(block.ln_2(middle))
                    if torch.allclose(output, expected[0], atol=1e-5):
                        kept.add((attended, fed))
                        break
                else:
                    continue
                break
            else:
                pytest.fail("tokens of one image were treated differently")
    assert len(kept) == 4


# Statistics and sizes


@pytest.mark.parametrize("kind", ["resnet", "b16"])
def test_image_statistics(make_visual: Any, kind: str) -> None:
    visual = make_visual(kind)
    visual.pixel_mean, visual.pixel_std = (0.1, 0.2, 0.4), (0.5, 0.25, 0.2)
    trunk = build(visual)
    assert trunk.pixel_mean == (0.1, 0.2, 0.4) and trunk.pixel_std == (0.5, 0.25, 0.2)
    mean, std = image_statistics(FPN(trunk, LEVELS, 8))
    assert mean == pytest.approx([25.5, 51, 102]) and std == pytest.approx([127.5, 63.75, 51])


@pytest.mark.parametrize(
    ("model", "grid", "aligned", "millions"),
    [
        ("RN50-quickgelu", 16, True, 38.741),
        ("RN50-quickgelu", None, False, 23.527),
        ("ViT-B-16-quickgelu", 40, True, 94.359),
        ("ViT-B-16-quickgelu", 40, False, 93.964),
    ],
)
def test_parameters(model: str, grid: int | None, aligned: bool, millions: float) -> None:
    with torch.device("meta"):
        visual: Any = create_aligned_visual(model, grid=grid)
        trunk = (AlignedResNet if model.startswith("RN") else AlignedViT)(visual, aligned)
    parameters = list(trunk.parameters())
    assert {p.device.type for p in parameters} == {"meta"}
    assert round(sum(p.numel() for p in parameters) / 1e6, 3) == millions
