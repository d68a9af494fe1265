"""The ordinary pass with embeddings of all locations, and what belongs to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from densedet.clip import ClipVisual, build_visual, create_aligned_visual
from densedet.clip.position import resample_positions
from densedet.errors import CheckpointError, ConfigError

FAMILIES = ["eva", "vit", "resnet"]
STAGES = {"c2": "layer1", "c3": "layer2", "c4": "layer3", "c5": "layer4"}
TOLERANCE = 1e-5


def images(height: int, width: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(3))


def relative(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest expected value."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


# Golden vectors


class Golden:
    """A file of reference vectors: its config, its weights in a file, and its arrays."""

    def __init__(self, file: Path, folder: Path) -> None:
        with np.load(file) as stored:
            arrays = {key: np.array(stored[key]) for key in stored.files}
        self.config = json.loads(str(arrays.pop("config")))
        tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
        weights = {k.removeprefix("weights/"): v for k, v in tensors.items() if "weights/" in k}
        self.arrays = {k: v for k, v in tensors.items() if "weights/" not in k}
        self.weights = str(folder / "released.pt")
        torch.save(weights, self.weights)


@pytest.fixture
def golden(golden_dir: Path, tmp_path: Path) -> Golden:
    return Golden(golden_dir / "denseclip_resnet.npz", tmp_path)


@pytest.fixture
def make_golden(golden: Golden, named_clip: Callable[..., str]) -> Callable[..., ClipVisual]:
    """``make_golden("seg" | "det", **changes)``: the tower of a variant, from the file."""
    config = golden.config
    name = named_clip(
        "resnet",
        {
            "width": config["width"],
            "layers": config["layers"],
            "heads": config["heads"],
            "embed": config["embed_dim"],
            "image": 32 * config["archive_grid"],
        },
    )

    def make(variant: str, **changes: Any) -> ClipVisual:
        grid = config[f"{variant}_input_resolution"] // 32
        options = {"grid": grid, "positions": {"seg": "bilinear", "det": "crop"}[variant]}
        return create_aligned_visual(name, golden.weights, **{**options, **changes})

    return make


def golden_sizes(golden: Golden) -> list[str]:
    return [f"{height}x{width}" for _, height, width in golden.config["sizes"]]


@pytest.mark.golden
@pytest.mark.parametrize("variant", ["seg", "det"])
def test_reference_resnet(golden: Golden, make_golden: Any, variant: str) -> None:
    visual = make_golden(variant)
    arrays = golden.arrays
    table = visual.tower.attnpool.positional_embedding
    assert relative(table, arrays[f"{variant}/positional_embedding"]) <= TOLERANCE
    for size in golden_sizes(golden):
        with torch.no_grad():
            found = visual.embed_locations(arrays[f"{size}/image"], list(STAGES.values()))
        for stage, tap in STAGES.items():
            assert relative(found.taps[tap], arrays[f"{size}/{stage}"]) <= TOLERANCE, (size, stage)
        assert relative(found.pooled, arrays[f"{size}/{variant}/global"]) <= TOLERANCE, size
        assert relative(found.dense, arrays[f"{size}/{variant}/local"]) <= TOLERANCE, size


@pytest.mark.golden
@pytest.mark.parametrize(
    ("variant", "wrong"),
    [
        ("seg", {"positions": "crop"}),
        ("seg", {"positions": "bicubic"}),
        ("seg", {"grid": None}),  # one resize instead of two
        ("det", {"positions": "bilinear"}),
    ],
)
def test_other_positions_miss_the_reference(
    golden: Golden, make_golden: Any, variant: str, wrong: dict[str, Any]
) -> None:
    visual = make_golden(variant, **wrong)
    errors = []  # a size at which cells of both grids meet may still fit
    for size in golden_sizes(golden):
        with torch.no_grad():
            found = visual.embed_locations(golden.arrays[f"{size}/image"])
        errors.append(relative(found.dense, golden.arrays[f"{size}/{variant}/local"]))
    assert max(errors) > 0.01


@pytest.mark.golden
def test_images_larger_than_cropped_positions(golden: Golden, make_golden: Any) -> None:
    grid = golden.config["det_input_resolution"] // 32
    message = f"{grid}x{grid} cells cannot be cropped to 1x{grid + 1}"
    with pytest.raises(ConfigError, match=message):
        make_golden("det").embed_locations(images(32, 32 * (grid + 1), 1))


# The pass


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    size = (64, 96)
    found = visual.embed_locations(images(*size), visual.tap_names)
    assert list(found.taps) == list(visual.tap_names)
    for name, tap in found.taps.items():
        stride = visual.tap_strides[name]
        expected = (2, visual.tap_channels[name], size[0] // stride, size[1] // stride)
        assert tuple(tap.shape) == expected
    assert found.dense is not None and found.pooled is not None
    grid = (size[0] // visual.stride, size[1] // visual.stride)
    assert tuple(found.dense.shape) == (2, visual.embed_dim, *grid)
    assert tuple(found.pooled.shape) == (2, visual.embed_dim)


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_is_the_image_embedding(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    batch = images(64, 96)
    torch.testing.assert_close(visual.embed_locations(batch).pooled, visual.embed_images(batch))


@pytest.mark.parametrize("family", ["eva", "vit"])
def test_dense_is_the_ordinary_path_without_the_norm(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    batch = images(32, 48)
    dense = visual.embed_locations(batch).dense
    assert dense is not None
    unit = torch.nn.functional.normalize(dense, dim=1)
    torch.testing.assert_close(unit, visual.dense_map(batch, "tokens"))
    assert not torch.allclose(dense, unit, rtol=0.01)


@pytest.mark.parametrize("family", ["eva", "vit"])
def test_the_last_tap_is_the_ordinary_output(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    batch = images(32, 48)
    last = visual.tap_names[-1]
    found = visual.embed_locations(batch, [last, "block0"])
    tokens = visual.embed_tokens(batch)
    for index in range(visual.depth):
        tokens = visual._run_block(index, tokens, (4, 6))
    expected = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
    torch.testing.assert_close(found.taps[last], expected)
    value_path = visual(batch, [last], dense=False, pooled=False).taps[last]
    assert not torch.allclose(found.taps[last], value_path, atol=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_changes_nothing(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    results = []
    for checkpointing in (False, True):
        visual.checkpointing = checkpointing
        pixels = images(32, 64).requires_grad_()
        found = visual.embed_locations(pixels, visual.tap_names[-1:])
        assert found.dense is not None and found.pooled is not None
        value = found.dense[:, 1].sum() + found.pooled[:, 0].sum()
        results.append((value, torch.autograd.grad(value, pixels)[0]))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_resnet_takes_odd_sizes(make_clip: Any) -> None:
    visual = build_visual(make_clip("resnet"))
    found = visual.embed_locations(images(75, 107), ["layer1", "layer2", "layer4"])
    sizes = {name: tuple(tap.shape[2:]) for name, tap in found.taps.items()}
    assert sizes == {"layer1": (19, 27), "layer2": (9, 13), "layer4": (2, 3)}
    with pytest.raises(ValueError, match="31x64 .HxW. is smaller than the tower's stride of 32"):
        visual.embed_locations(images(31, 64))


@pytest.mark.parametrize("family", FAMILIES)
def test_bad_input(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    with pytest.raises(ValueError, match="no such taps: .'block9'."):
        visual.embed_locations(images(32, 32), ["block9"])
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\]"):
        visual.embed_locations(torch.zeros(3, 32, 32))
    if family != "resnet":
        with pytest.raises(ValueError, match="36x32 .HxW. does not fit a tower of stride 8"):
            visual.embed_locations(images(36, 32))


# Positions, class embedding, taps alone


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_positions_mode_counts(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    batch = images(64, 96) if family == "resnet" else images(16, 24)
    table_of(visual).data.mul_(10)
    found = {}
    for mode in ("bicubic", "bilinear", "crop"):
        visual.positions = mode
        found[mode] = visual.embed_locations(batch).dense
    assert not torch.allclose(found["bicubic"], found["bilinear"], atol=1e-3)
    assert not torch.allclose(found["bilinear"], found["crop"], atol=1e-3)
    visual.positions = "crop"  # also where attention is replaced by its value path
    cropped = visual.dense_map(batch)
    visual.positions = "bicubic"
    assert not torch.allclose(cropped, visual.dense_map(batch), atol=1e-3)


def table_of(visual: ClipVisual) -> Tensor:
    tower: Any = visual.tower
    return getattr(tower, "attnpool", tower).positional_embedding


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_resize_positions(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    before = table_of(visual).detach().clone()
    visual.resize_positions(6)
    expected = resample_positions(before, (6, 6), mode="bilinear")
    table = table_of(visual)
    assert torch.equal(table, expected) and table.requires_grad
    assert isinstance(table, torch.nn.Parameter)
    assert visual.image_size == (6 * visual.stride, 6 * visual.stride)
    # An image of the new size uses the table as it is, in every mode.
    batch = images(*visual.image_size, 1)
    results = []
    for mode in ("bicubic", "crop"):
        visual.positions = mode
        results.append(visual.embed_locations(batch).dense)
    torch.testing.assert_close(*results)


def test_double_class_embedding(make_clip: Any) -> None:
    visual = build_visual(make_clip("vit"))
    batch = images(32, 48)
    tower = visual.tower
    tower.ln_pre = torch.nn.Identity()
    single = visual.embed_tokens(batch)
    visual.double_class_embedding = True
    double = visual.embed_tokens(batch)
    torch.testing.assert_close(single[:, 1:], double[:, 1:])
    torch.testing.assert_close(double[:, 0] - single[:, 0], tower.class_embedding.expand(2, -1))


@pytest.mark.parametrize(
    ("family", "dropped"), [("vit", ("ln_post.", "proj")), ("resnet", ("attnpool.",))]
)
def test_drop_embedding(make_clip: Any, family: str, dropped: tuple[str, ...]) -> None:
    visual = build_visual(make_clip(family))
    batch = images(32, 64)
    taps = visual.tap_names[1:]
    before = visual.embed_locations(batch, taps)
    names = set(visual.tower.state_dict())
    visual.drop_embedding()
    gone = names - set(visual.tower.state_dict())
    assert gone and gone == {name for name in names if name.startswith(dropped)}
    after = visual.embed_locations(batch, taps)
    assert after.dense is None and after.pooled is None
    assert all(torch.equal(after.taps[name], before.taps[name]) for name in taps)
    requests: list[Callable[[], object]] = [
        lambda: visual(batch, pooled=False),
        lambda: visual.embed_images(batch),
        lambda: visual.dense_map(batch),
    ]
    for request in requests:
        with pytest.raises(ConfigError, match="was dropped, it gives taps only"):
            request()


def test_without_embedding_no_block_after_the_last_tap_runs(make_clip: Any) -> None:
    visual = build_visual(make_clip("vit"))
    visual.drop_embedding()
    ran: list[int] = []
    for index, block in enumerate(visual.tower.transformer.resblocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    visual.embed_locations(images(32, 32), ["block1"])
    assert ran == [0, 1]


def test_eva_keeps_positions_and_embedding(make_clip: Any) -> None:
    visual = build_visual(make_clip("eva"))
    with pytest.raises(ConfigError, match="positions of a TimmModel cannot be resized"):
        visual.resize_positions(6)
    with pytest.raises(ConfigError, match="embedding of a TimmModel cannot be dropped"):
        visual.drop_embedding()


# The factory


def test_create_aligned_visual(named_clip: Any) -> None:
    visual = create_aligned_visual(named_clip("vit"), grid=6, double_class_embedding=True)
    assert visual.positions == "bilinear" and visual.double_class_embedding
    assert len(table_of(visual)) == 37 and not visual.training
    plain = create_aligned_visual(named_clip("vit"), positions="crop")
    assert plain.positions == "crop" and not plain.double_class_embedding
    assert len(table_of(plain)) == 17


def test_create_aligned_visual_refuses(named_clip: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="small-eva is neither a ViT nor a ResNet"):
        create_aligned_visual(named_clip("eva"))
    with pytest.raises(ConfigError, match="small-resnet has no class embedding"):
        create_aligned_visual(named_clip("resnet"), double_class_embedding=True)
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        create_aligned_visual(named_clip("vit"), str(tmp_path / "none.pt"))


def test_parameters_of_rn50() -> None:
    with torch.device("meta"):
        visual = create_aligned_visual("RN50-quickgelu", grid=16)
    count = sum(p.numel() for p in visual.parameters())
    assert round(count / 1e6, 3) == 38.741
    assert {p.device.type for p in visual.parameters()} == {"meta"}
