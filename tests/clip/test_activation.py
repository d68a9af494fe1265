"""Weights of QuickGELU and of GELU are not mixed up."""

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.factory import _MODEL_CONFIGS
from safetensors.torch import save_file
from torch import nn

from densedet.clip import create_clip, create_text_encoder, create_visual
from densedet.clip.convert import read_clip, write_open_clip, write_released
from densedet.clip.export import export_clip
from densedet.clip.factory import resolve_architecture, weights_identity
from densedet.errors import CheckpointError, ConfigError

SCALARS = {"input_resolution": 32, "context_length": 16, "vocab_size": 49408}
OPENAI = {name: torch.tensor(number) for name, number in SCALARS.items()}


@pytest.fixture
def names(named_clip: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Small architectures that open_clip knows: with QuickGELU, and the same with GELU."""
    quick = named_clip("vit")
    config = _MODEL_CONFIGS[quick]
    monkeypatch.setitem(_MODEL_CONFIGS, "small", {**config, "quick_gelu": False})
    monkeypatch.setitem(_MODEL_CONFIGS, "small-quickgelu", config)
    return {"quick": "small-quickgelu", "plain": "small"}


def refused(load: Any, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load()
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("numbers", [OPENAI, SCALARS], ids=["tensors", "numbers"])
def test_openais_weights_are_for_quickgelu(names: Any, tmp_path: Path, numbers: Any) -> None:
    path = str(tmp_path / "ViT.pt")
    torch.save({**create_clip(names["quick"]).state_dict(), **numbers}, path)
    for create in (create_clip, create_visual, create_text_encoder):
        create(names["quick"], path)
        refused(
            lambda create=create: create(names["plain"], path),
            "ViT.pt: trained with QuickGELU",
            "input_resolution",
            "small computes GELU",
            "take the architecture small-quickgelu",
        )
    refused(lambda: read_clip(path, names["plain"]), "take the architecture small-quickgelu")
    refused(lambda: read_clip(path, names["plain"], visual_only=True), "QuickGELU")


def test_openais_numbers_are_kept_and_known_after_a_conversion(names: Any, tmp_path: Path) -> None:
    state = {**create_clip(names["quick"]).state_dict(), **OPENAI}
    torch.save(state, tmp_path / "ViT.pt")
    converted = read_clip(tmp_path / "ViT.pt", names["quick"])
    write_open_clip(tmp_path / "ours.safetensors", converted)
    again = read_clip(tmp_path / "ours.safetensors", names["quick"])
    write_released(tmp_path / "back.pt", again, flat=True)
    found = torch.load(tmp_path / "back.pt", weights_only=True)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    for name in ("ours.safetensors", "back.pt"):
        refused(lambda name=name: create_clip(names["plain"], str(tmp_path / name)), "QuickGELU")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_an_archive_of_torchscript_is_known_too(names: Any, tmp_path: Path) -> None:
    class Archive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, number in OPENAI.items():
                self.register_buffer(name, number)
            self.visual = nn.Linear(2, 2)

    torch.jit.script(Archive()).save(str(tmp_path / "ViT.pt"))
    refused(lambda: create_clip(names["plain"], str(tmp_path / "ViT.pt")), "small-quickgelu")


@pytest.mark.parametrize(
    ("made", "asked", "trained"), [("quick", "plain", "QuickGELU"), ("plain", "quick", "GELU")]
)
def test_our_files_say_what_they_are_for(
    names: Any, tmp_path: Path, made: str, asked: str, trained: str
) -> None:
    model = create_clip(names[made])
    torch.save(model.state_dict(), tmp_path / "theirs.pt")  # of which nothing is known
    create_clip(names["plain"], str(tmp_path / "theirs.pt"))
    create_clip(names["quick"], str(tmp_path / "theirs.pt"))
    export_clip(tmp_path / "a.safetensors", names[made], None, model.visual.state_dict())
    converted = read_clip(tmp_path / "theirs.pt", names[made])
    write_open_clip(tmp_path / "b.safetensors", converted)
    for name in ("a.safetensors", "b.safetensors"):
        create_visual(names[made], str(tmp_path / name))
        refused(
            lambda name=name: create_visual(names[asked], str(tmp_path / name)),
            f"{name}: trained with {trained} (it is for {names[made]})",
            f"take the architecture {names[made]}",
        )


@pytest.mark.parametrize(
    ("config", "asked"),
    [({"model_cfg": {"quick_gelu": True}}, "plain"), ({"model_cfg": {}}, "quick")],
)
def test_the_config_of_open_clip_beside_its_file(
    names: Any, tmp_path: Path, config: Any, asked: str
) -> None:
    state = {
        name: value.clone() for name, value in create_clip(names["plain"]).state_dict().items()
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    for name in ("open_clip_model.safetensors", "other.safetensors"):
        save_file(state, tmp_path / name)
    path = str(tmp_path / "open_clip_model.safetensors")
    refused(lambda: create_clip(names[asked], path), "open_clip_config.json beside it")
    create_clip(names[asked], str(tmp_path / "other.safetensors"))
    (tmp_path / "open_clip_config.json").write_text("[" * 200_000)
    create_clip(names[asked], path)


def test_the_image_tower_of_a_resnet_has_neither(
    named_clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = named_clip("resnet")
    monkeypatch.setitem(_MODEL_CONFIGS, "small", {**_MODEL_CONFIGS[quick], "quick_gelu": False})
    path = str(tmp_path / "RN.pt")
    torch.save({**create_clip(quick).state_dict(), **OPENAI}, path)
    create_visual("small", path)
    refused(lambda: create_text_encoder("small", path), "QuickGELU")


def test_tags_are_compared_before_they_are_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str]] = []

    def offline(model: str, pretrained: str, **_: Any) -> None:
        made.append((model, pretrained))
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    for create in (create_clip, create_visual, create_text_encoder):
        refused(
            lambda create=create: create("ViT-B-16", "openai"),
            "weights 'openai': trained with QuickGELU",
            "take the architecture ViT-B-16-quickgelu",
        )
    assert made == []
    refused(lambda: create_visual("RN50", "openai"), "no network")  # has neither
    refused(lambda: create_clip("RN50", "openai"), "take the architecture RN50-quickgelu")
    refused(lambda: create_clip("ViT-B/16", "openai"), "no network")
    refused(lambda: create_clip("ViT-B/16", "laion2b_s34b_b88k"), "no network")
    assert made == [
        ("RN50", "openai"),
        ("ViT-B-16-quickgelu", "openai"),
        ("ViT-B-16", "laion2b_s34b_b88k"),
    ]


def test_openais_spelling() -> None:
    assert resolve_architecture("ViT-B/16") == "ViT-B-16"
    assert resolve_architecture("ViT-L/14@336px", "openai") == "ViT-L-14-336-quickgelu"
    assert resolve_architecture("ViT-B-16", "openai") == "ViT-B-16"
    assert resolve_architecture("densedet-tiny", "shipped") == "densedet-tiny"
    assert weights_identity("ViT-B/16", "openai") == "tag:ViT-B-16-quickgelu:openai"


@pytest.mark.parametrize("name", ["hf-hub:laion/CLIP-ViT-B-32", "local-dir:some/folder"])
def test_repositories_and_folders_do_not_become_other_names(name: str) -> None:
    for create in (create_clip, create_visual, create_text_encoder):
        with pytest.raises(ConfigError, match=f"^{name}: repositories and folders of open_clip"):
            create(name)
        with pytest.raises(CheckpointError, match=f"^{name}: repositories and folders"):
            create("ViT-B-32", name)
