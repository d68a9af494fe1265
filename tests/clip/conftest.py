"""Small CLIP models of each family, at sizes that the tests choose."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.factory import _MODEL_CONFIGS
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from timm.layers import LayerNorm
from timm.models._registry import _model_entrypoints
from timm.models.eva import Eva
from torch import Tensor, nn

SMALL_TEXT = {"width": 32, "heads": 2, "layers": 1, "context": 16, "vocab": 49408}
SMALL_EVA = {
    "width": 48, "heads": 3, "depth": 3, "patch": 8, "image": 32, "mlp_ratio": 2.5, "embed": 20,
    "pt_hw_seq_len": 16, "norm_eps": 1e-6,
}  # fmt: skip
SMALL_VIT = {"width": 48, "heads": 3, "depth": 3, "patch": 8, "image": 32, "embed": 20}
SMALL_RESNET = {"width": 8, "layers": [1, 2, 1, 1], "image": 96, "embed": 20, "heads": 4}


def _text_cfg(text: dict[str, Any]) -> dict[str, Any]:
    return {
        "context_length": text["context"],
        "vocab_size": text["vocab"],
        "width": text["width"],
        "heads": text["heads"],
        "layers": text["layers"],
    }


def _finished(model: nn.Module) -> nn.Module:
    set_model_preprocess_cfg(model, asdict(PreprocessCfg(size=model.visual.image_size)))
    return model.eval()


def _eva_trunk(vision: dict[str, Any]) -> Eva:
    side = vision["pt_hw_seq_len"]
    return Eva(
        img_size=vision["image"],
        patch_size=vision["patch"],
        num_classes=vision["embed"],
        global_pool="token",
        embed_dim=vision["width"],
        depth=vision["depth"],
        num_heads=vision["heads"],
        mlp_ratio=vision["mlp_ratio"],
        qkv_fused=vision.get("qkv_fused", False),
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(side, side),
        norm_layer=partial(LayerNorm, eps=vision["norm_eps"]),
    )


def _eva(vision: dict[str, Any], text: dict[str, Any]) -> nn.Module:
    stand_in = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}
    model = CustomTextCLIP(vision["embed"], stand_in, _text_cfg(text))
    with torch.device("meta"):
        model.visual = TimmModel(
            "eva02_base_patch16_clip_224",
            vision["embed"],
            image_size=vision["image"],
            pool="token",
            proj=None,
        )
    model.visual.trunk = _eva_trunk(vision)
    return _finished(model)


def _vit_cfg(vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": vision["image"],
        "patch_size": vision["patch"],
        "width": vision["width"],
        "head_width": vision["width"] // vision["heads"],
        "layers": vision["depth"],
        "mlp_ratio": vision.get("mlp_ratio", 4),
    }


def _vit(vision: dict[str, Any], text: dict[str, Any]) -> nn.Module:
    return _finished(CLIP(vision["embed"], _vit_cfg(vision), _text_cfg(text), quick_gelu=True))


def _resnet_cfg(vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "image_size": vision["image"],
        "width": vision["width"],
        "layers": list(vision["layers"]),
        "head_width": vision["width"] * 32 // vision["heads"],
    }


def _resnet(vision: dict[str, Any], text: dict[str, Any]) -> nn.Module:
    return _finished(CLIP(vision["embed"], _resnet_cfg(vision), _text_cfg(text), quick_gelu=True))


FAMILIES = {"eva": (_eva, SMALL_EVA), "vit": (_vit, SMALL_VIT), "resnet": (_resnet, SMALL_RESNET)}


def _randomise(model: nn.Module, seed: int) -> None:
    """Make every weight matter: no zero biases, no unit norms, no zero batch norm scales."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("token_embedding.weight"):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.copy_(noise * 0.3 + (1.0 if name.endswith("weight") else 0.0))
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


@pytest.fixture
def make_clip() -> Callable[..., Any]:
    """``make_clip("eva" | "vit" | "resnet", vision=None, text=None, seed=None)``: open_clip
    model."""

    def make(
        family: str,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        seed: int | None = 0,
    ) -> Any:
        build, small = FAMILIES[family]
        model = build({**small, **(vision or {})}, text or SMALL_TEXT)
        if seed is not None:
            _randomise(model, seed)
        return model

    return make


@pytest.fixture
def named_clip(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """``named_clip("eva" | "vit" | "resnet", vision=None, text=None)``: register the small model
    under a name, returned, that ``create_clip`` knows until the end of the test."""

    def register(
        family: str, vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None
    ) -> str:
        name = f"small-{family}"
        vision = {**FAMILIES[family][1], **(vision or {})}
        config: dict[str, Any] = {"embed_dim": vision["embed"]}
        config["text_cfg"] = _text_cfg(text or SMALL_TEXT)
        if family == "eva":
            trunk = "small_eva_trunk"
            sizes = {"image_size": vision["image"], "timm_pool": "token", "timm_proj": None}
            config["vision_cfg"] = {"timm_model_name": trunk, **sizes}
            config["custom_text"] = True
            monkeypatch.setitem(_model_entrypoints, trunk, lambda **_: _eva_trunk(vision))
        else:
            make_config = {"vit": _vit_cfg, "resnet": _resnet_cfg}[family]
            config |= {"vision_cfg": make_config(vision), "quick_gelu": True}
        monkeypatch.setitem(_MODEL_CONFIGS, name, config)
        return name

    return register


@pytest.fixture
def golden_arrays(golden_dir: Path) -> Callable[[str], dict[str, Tensor]]:
    """Read an .npz file of the reference vectors as tensors."""

    def read(name: str) -> dict[str, Tensor]:
        with np.load(golden_dir / name) as file:
            return {key: torch.from_numpy(np.array(file[key])) for key in file.files}

    return read
