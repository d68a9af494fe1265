"""The tiny CLIP: an ordinary open_clip config, an early-convolution stem, a sparse weights file."""

from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.pos_embed import get_2d_sincos_pos_embed
from torch import nn

from densedet.clip import build_visual, create_clip, create_text_encoder, load_checkpoint
from densedet.clip.tiny import (
    build_tiny_clip,
    convolution_stem,
    export_tiny_weights,
    read_model_config,
    shipped_models,
)
from densedet.errors import CheckpointError, ConfigError


def test_config_is_open_clips_but_for_one_key(tmp_path: Path) -> None:
    config = read_model_config("densedet-tiny")
    assert set(config) == {"embed_dim", "vision_cfg", "text_cfg", "densedet"}
    del config["densedet"]
    plain, tiny = CLIP(**config).state_dict(), build_tiny_clip().state_dict()
    shapes = {k: v.shape for k, v in plain.items() if not k.startswith("visual.conv1")}
    assert {k: v.shape for k, v in tiny.items() if not k.startswith("visual.conv1")} == shapes
    assert plain["visual.positional_embedding"].shape == (37, 128)
    assert plain["positional_embedding"].shape == (24, 128)


def test_stem_is_three_convolutions_and_a_projection() -> None:
    stem = build_tiny_clip().visual.conv1
    kinds = [type(layer) for layer in stem]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 3 + [nn.Conv2d]
    sizes = [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0]) for m in stem[::3]]
    assert sizes == [(3, 32, 3, 2), (32, 64, 3, 2), (64, 128, 3, 2), (128, 128, 1, 1)]
    assert convolution_stem([4, 6], 5)(torch.zeros(1, 3, 20, 36)).shape == (1, 5, 5, 9)


def test_position_table_starts_as_scaled_sines() -> None:
    table = build_tiny_clip().visual.positional_embedding
    expected = torch.from_numpy(get_2d_sincos_pos_embed(128, 6, cls_token=True)).float()
    torch.testing.assert_close(table.detach(), 0.3 * expected)
    assert table.requires_grad and not table[0].any()


def test_weights_depend_on_the_seed_only() -> None:
    def built(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return build_tiny_clip().visual.conv1[3].weight

    assert torch.equal(built(1), built(1))
    assert not torch.equal(built(1), built(2))


def test_stem_must_make_the_patches_of_the_config() -> None:
    config = read_model_config("densedet-tiny")
    config["densedet"]["stem"] = [32, 64]
    with pytest.raises(ConfigError, match="2 stride-2 convolutions makes patches of 4 pixels"):
        build_tiny_clip(config)


def test_shipped_configs_by_name() -> None:
    assert "densedet-tiny" in shipped_models()
    with pytest.raises(ConfigError, match="densedet-huge.*densedet-tiny"):
        read_model_config("densedet-huge")


@torch.no_grad()
def test_weights_file_is_small_and_gives_the_same_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build_tiny_clip()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    model.eval()
    texts = ["a photo of a red star.", "blue hoop"]
    tokens = open_clip.tokenize(texts, 24)
    path = tmp_path / "w.safetensors"
    export_tiny_weights(model, tokens.unique().tolist(), path)
    assert path.stat().st_size < 6_000_000
    torch.manual_seed(2)
    again = create_clip("densedet-tiny", str(path))
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(again.encode_image(images), model.encode_image(images))
    assert torch.equal(again.encode_text(tokens), model.encode_text(tokens))
    used = again.token_embedding.weight.any(dim=1).nonzero()[:, 0]
    assert used.tolist() == tokens.unique().tolist()[0 if tokens.min() else 0 :]
    encoder = create_text_encoder("densedet-tiny", str(path))
    torch.testing.assert_close(encoder.encode(texts), model.encode_text(tokens))


def test_start_and_end_tokens_are_always_stored(tmp_path: Path) -> None:
    model = build_tiny_clip()
    export_tiny_weights(model, [320], tmp_path / "w.safetensors")
    again = build_tiny_clip()
    load_checkpoint(again, tmp_path / "w.safetensors")
    used = again.token_embedding.weight.any(dim=1).nonzero()[:, 0]
    assert used.tolist() == [320, 49406, 49407]


def test_file_of_another_size_does_not_fit(tmp_path: Path) -> None:
    export_tiny_weights(build_tiny_clip(), [1], tmp_path / "w.safetensors")
    config = read_model_config("densedet-tiny")
    config["vision_cfg"]["layers"] = 5
    model = build_tiny_clip(config)
    with pytest.raises(CheckpointError, match=r"w\.safetensors.*12 missing: visual.transformer"):
        load_checkpoint(model, tmp_path / "w.safetensors")


@torch.no_grad()
def test_dense_encoder_of_the_tiny_model() -> None:
    visual = build_visual(create_clip("densedet-tiny"))
    assert (visual.stride, visual.embed_dim, visual.image_size) == (8, 128, (48, 48))
    found = visual(torch.zeros(1, 3, 64, 104), taps=["block0", "block3"])
    assert found.dense.shape == (1, 128, 8, 13)
    assert {k: v.shape[1:] for k, v in found.taps.items()} == {
        "block0": (128, 8, 13),
        "block3": (128, 8, 13),
    }


def test_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = build_tiny_clip()
    assert {p.device.type for p in model.parameters()} == {"meta"}
