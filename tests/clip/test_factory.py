"""Making models by name."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from densedet.clip import create_clip, create_visual
from densedet.clip.factory import weights_file, weights_identity
from densedet.errors import CheckpointError, ConfigError


def test_unknown_architecture_names_close_ones() -> None:
    with pytest.raises(ConfigError, match="'EVA02-B16'.*did you mean.*EVA02-B-16"):
        create_clip("EVA02-B16")


@pytest.mark.parametrize("name", ["coca_ViT-B-32", "roberta-ViT-B-32"])
def test_unsupported_architectures_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*not supported"):
        create_clip(name)


@pytest.mark.parametrize("path", ["weights/absent", "absent.pt", "absent.safetensors"])
def test_missing_file_is_not_taken_for_a_tag(path: str) -> None:
    with pytest.raises(CheckpointError, match=f"{path}: no such checkpoint file"):
        create_visual("EVA02-B-16", path)


def test_unknown_tag_lists_the_tags() -> None:
    with pytest.raises(CheckpointError, match="'openia' of EVA02-B-16.*merged2b_s8b_b131k"):
        create_clip("EVA02-B-16", "openia")


def test_tag_without_network_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to download weights for tag: [Errno -2] no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    message = "'merged2b_s8b_b131k' of EVA02-B-16 .*no network.*path of a local checkpoint file"
    with pytest.raises(CheckpointError, match=message):
        create_clip("EVA02-B-16", "merged2b_s8b_b131k")


def test_no_weights_are_shipped_for_open_clips_models() -> None:
    with pytest.raises(CheckpointError, match="ships no weights of 'EVA02-B-16'"):
        create_clip("EVA02-B-16", "shipped")


def test_created_models_are_in_eval_mode_and_fp32() -> None:
    model = create_clip("densedet-tiny")
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not create_visual("densedet-tiny").training


def test_file_wins_and_its_identity_is_its_content(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    file.write_bytes(b"abc")
    assert weights_file("ViT-B-32", str(file)) == file
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert weights_identity("ViT-B-32", str(file)) == f"sha256:{digest}"
    assert weights_identity("ViT-B-32", "openai") == "tag:ViT-B-32:openai"
    assert weights_identity("ViT-B-32", None) is None


@pytest.mark.slow
def test_importing_needs_no_detectron2() -> None:
    code = (
        "import sys; sys.modules['detectron2'] = None; "
        "import densedet.clip, densedet.regions; "
        "print(any(name.startswith('detectron2.') for name in sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
