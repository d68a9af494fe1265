"""timm models as trunks with an attention pool."""

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.modeling.backbone import FPN
from safetensors.torch import save_file
from timm.models.efficientformer import Attention
from torch import Tensor

from densedet.clip.attention_pool import attend_all
from densedet.errors import CheckpointError, ConfigError
from densedet.modeling.backbone import (
    DENSE_EMBEDDING,
    POOLED_EMBEDDING,
    TimmBackbone,
    image_statistics,
)
from densedet.modeling.backbone.efficientformer import GridAttention

LEVELS = ["res2", "res3", "res4", "res5"]
SWIN = "swin_tiny_patch4_window7_224"
CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    SWIN: (96, 192, 384, 768),
    "swin_small_patch4_window7_224": (96, 192, 384, 768),
    "convnext_tiny": (96, 192, 384, 768),
    "mobilenetv2_100": (24, 32, 96, 320),
    "efficientformer_l1": (48, 96, 224, 448),
    "poolformer_s12": (64, 128, 320, 512),
}


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", CHANNELS)
def test_levels_embeddings_and_gradients(name: str) -> None:
    backbone = TimmBackbone(name, embed_dim=20, grid=3)
    shapes = backbone.output_shape()
    assert [s.channels for s in shapes.values()] == list(CHANNELS[name])
    assert [s.stride for s in shapes.values()] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 32 and backbone.embed_dim == 20
    found = backbone(images(2, 3, 64, 96))  # no multiple of Swin's windows of 28 pixels
    assert list(found) == [*LEVELS, DENSE_EMBEDDING, POOLED_EMBEDDING]
    for level, shape in shapes.items():
        assert found[level].shape == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
    assert found[DENSE_EMBEDDING].shape == (2, 20, 2, 3)
    assert found[POOLED_EMBEDDING].shape == (2, 20)
    sum((value**2).sum() for value in found.values()).backward()
    missing = [n for n, p in backbone.named_parameters() if p.grad is None]
    assert missing == []


def test_the_pool_sees_the_last_level() -> None:
    backbone = TimmBackbone("resnet18", embed_dim=20, grid=3).eval()
    found = backbone(images(1, 3, 64, 96))
    assert backbone.pool is not None
    pooled, dense = attend_all(backbone.pool, found["res5"], "bilinear")
    torch.testing.assert_close(found[POOLED_EMBEDDING], pooled)
    torch.testing.assert_close(found[DENSE_EMBEDDING], dense)


def test_without_embeddings() -> None:
    backbone = TimmBackbone("resnet18", embed_dim=None)
    assert backbone.embed_dim is None
    assert list(backbone(images(2, 3, 64, 64))) == LEVELS
    assert set(FPN(backbone, LEVELS, 8)(images(2, 3, 64, 64))) == {"p2", "p3", "p4", "p5"}


def test_swins_levels_are_channels_first_and_of_every_size() -> None:
    torch.manual_seed(0)
    backbone = TimmBackbone(SWIN, embed_dim=None).eval()
    stripes = images(1, 3, 32, 1).expand(-1, -1, -1, 224)  # rows differ, columns do not
    level = backbone(stripes)["res2"][..., 14:42]
    across, along = level.std(dim=2).mean(), level.std(dim=3).mean()
    assert along < 0.5 * across
    assert tuple(backbone(images(1, 3, 100, 60))["res5"].shape) == (1, 768, 4, 2)


def test_efficientformer_is_timms_on_its_own_grid() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("efficientformer_l1", num_classes=0).eval()
    backbone = TimmBackbone("efficientformer_l1", embed_dim=None).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("attention_biases", "ls1.gamma", "ls2.gamma")):
                weight.normal_()  # timm starts them near zero
        backbone.trunk.model.load_state_dict(model.state_dict(), strict=False)
        batch = images(1, 3, 224, 224)
        expected = model.forward_intermediates(batch, intermediates_only=True)
        found = backbone(batch)
    for level, value in zip(LEVELS, expected, strict=True):
        torch.testing.assert_close(found[level], value)


@torch.no_grad()
def test_efficientformers_attention_on_other_grids() -> None:
    """The biases are a function of the absolute offsets: here a linear one."""
    attention = Attention(dim=8, key_dim=4, num_heads=2)
    steps = torch.arange(7.0)
    attention.attention_biases.copy_(
        torch.stack([steps[:, None] + 0 * steps, 0 * steps[:, None] + steps]).flatten(1)
    )
    layer = GridAttention(attention)
    layer.grid = (3, 4)
    biases = layer._biases().unflatten(1, (3, 4)).unflatten(3, (3, 4))
    rows, columns = torch.arange(3.0), torch.arange(4.0)
    assert biases.shape == (2, 3, 4, 3, 4)
    for y, x in ((0, 0), (2, 1)):
        torch.testing.assert_close(biases[0, y, x], (3 * (rows - y).abs())[:, None].expand(3, 4))
        torch.testing.assert_close(biases[1, y, x], (2 * (columns - x).abs()).expand(3, 4))


@torch.no_grad()
def test_a_copy_of_an_efficientformer_takes_any_size() -> None:
    backbone = copy.deepcopy(TimmBackbone("efficientformer_l1", embed_dim=None)).eval()
    sizes = {(64, 96): (2, 3), (224, 224): (7, 7), (128, 32): (4, 1), (100, 60): (4, 2)}
    for size, grid in sizes.items():
        assert backbone(images(1, 3, *size))["res5"].shape == (1, 448, *grid)
    shapes = [tuple(level.shape[-2:]) for level in backbone(images(1, 3, 100, 60)).values()]
    assert shapes == [(25, 15), (13, 8), (7, 4), (4, 2)]


def test_statistics_are_the_weights() -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("resnet18")
        other = TimmBackbone("inception_v3")
    assert backbone.pixel_mean == (0.485, 0.456, 0.406)
    mean, std = image_statistics(backbone)
    assert mean == pytest.approx([123.675, 116.28, 103.53])
    assert std == pytest.approx([58.395, 57.12, 57.375])
    assert image_statistics(other)[0] != mean


@pytest.mark.parametrize("name", CHANNELS)
def test_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone(name)
    assert {p.device.type for p in backbone.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet18", "w.pth"),
        ("resnet18", "w.safetensors"),
        (SWIN, "w.safetensors"),
        ("efficientformer_l1", "w.safetensors"),
    ],
)
def test_weights_of_a_file(tmp_path: Path, name: str, file: str) -> None:
    torch.manual_seed(1)
    model: Any = timm.create_model(name, num_classes=7).eval()  # the classifier is not read
    path = str(tmp_path / file)
    if file.endswith(".pth"):
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    backbone = TimmBackbone(name, embed_dim=None, pretrained=path).eval()
    batch = images(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.forward_intermediates(batch, intermediates_only=True)[-4:]
        found = backbone(batch)
    for level, value in zip(LEVELS, expected, strict=True):
        torch.testing.assert_close(found[level], value)


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="none.pth: no such checkpoint file"):
        TimmBackbone("resnet18", pretrained=str(tmp_path / "none.pth"))
    state = timm.create_model("resnet18").state_dict()
    path = tmp_path / "weights.pth"
    torch.save({k: v for k, v in state.items() if k != "layer3.0.conv1.weight"}, path)
    with pytest.raises(CheckpointError, match="1 missing: layer3.0.conv1.weight"):
        TimmBackbone("resnet18", pretrained=str(path))
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"conv1.weight \(64, 3, 3, 3\) for \(64, 3, 7, 7\)"):
        TimmBackbone("resnet18", pretrained=str(path))
    torch.save({**state, "layer9.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="weights.pth: .*1 unexpected: layer9.weight"):
        TimmBackbone("resnet18", pretrained=str(path))


def test_weights_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", refuse)
    message = r"timm's weights of resnet18 could not be downloaded or read \(no network\)"
    with pytest.raises(CheckpointError, match=message):
        TimmBackbone("resnet18", pretrained=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5O", "no model named 'resnet5O'; did you mean resnet50"),
        ("resnet50.nope", r"with four levels, of strides \[4, 8, 16, 32\]: Invalid pretrained tag"),
        ("vit_base_patch16_224", "have strides .16, 16, 16, 16., a backbone here needs"),
        ("levit_128", "levit_128 cannot be a backbone with four levels"),
        ("nest_tiny", "nest_tiny cannot be a backbone with four levels"),  # strides 4, 8 and 16
    ],
)
def test_names_that_are_no_backbones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TimmBackbone(name)
