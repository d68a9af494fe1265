"""A whole CLIP with another image tower, written to a file and read again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from densedet.clip import (
    build_visual,
    create_clip,
    create_text_encoder,
    create_visual,
    export_clip,
    read_state_dict,
)
from densedet.errors import CheckpointError, ConfigError

TINY = "densedet-tiny"


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture
def trained() -> dict[str, Tensor]:
    """The shipped image tower after a change of every floating parameter."""
    state = create_visual(TINY, "shipped").tower.state_dict()
    return {k: v * 1.5 if v.is_floating_point() else v for k, v in state.items()}


def test_image_tower_is_new_and_the_rest_is_the_old(
    tmp_path: Path, trained: dict[str, Tensor]
) -> None:
    path = tmp_path / "folder" / "distilled.safetensors"
    export_clip(path, TINY, "shipped", trained, {"alpha": "0.7"})
    whole, shipped = create_clip(TINY, str(path)), create_clip(TINY, "shipped")
    rest = {k: v for k, v in shipped.state_dict().items() if not k.startswith("visual.")}
    expected = rest | {f"visual.{k}": v for k, v in trained.items()}
    assert same(dict(whole.state_dict()), expected)
    assert same(dict(create_visual(TINY, str(path)).tower.state_dict()), trained)
    words, prompts = ["red star", "ring"], "single"
    found = create_text_encoder(TINY, str(path)).embed_names(words, prompts)
    torch.testing.assert_close(
        found, create_text_encoder(TINY, "shipped").embed_names(words, prompts)
    )
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert metadata["model"] == TINY and metadata["alpha"] == "0.7"
        stored = file.get_slice("token_embedding.weight.rows").get_shape()[0]
    assert stored < int(metadata["vocab_size"]) // 10
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("family", ["eva", "vit", "resnet"])
def test_every_family(tmp_path: Path, named_clip: Any, make_clip: Any, family: str) -> None:
    name = named_clip(family)
    other = make_clip(family, seed=4)
    torch.save(other.state_dict(), tmp_path / "other.pt")
    state = build_visual(make_clip(family, seed=5)).tower.state_dict()
    path = tmp_path / "x.safetensors"
    export_clip(path, name, str(tmp_path / "other.pt"), state)
    rest = {k: v for k, v in other.state_dict().items() if not k.startswith("visual.")}
    assert same(read_state_dict(path), rest | {f"visual.{k}": v for k, v in state.items()})


def test_random_numbers_are_left_as_they_were(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    export_clip(tmp_path / "x.safetensors", TINY, "shipped", trained)
    assert torch.equal(torch.rand(3), expected)


def test_refused_exports_write_nothing(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    with pytest.raises(ConfigError, match=r"x\.pt: .*\.safetensors"):
        export_clip(tmp_path / "x.pt", TINY, "shipped", trained)
    path = tmp_path / "x.safetensors"
    del trained["proj"]
    with pytest.raises(CheckpointError, match=r"image tower for .*x\.safetensors.*missing: proj"):
        export_clip(path, TINY, "shipped", trained)
    with pytest.raises(CheckpointError, match="absent.pt"):
        export_clip(path, TINY, str(tmp_path / "absent.pt"), trained)
    assert not list(tmp_path.iterdir())
