"""CLIP models that densedet describes itself: open_clip configs with an early-convolution stem.

A config is an ordinary open_clip JSON (``embed_dim``, ``vision_cfg``, ``text_cfg``) with one more
key, ``"densedet": {"stem": [32, 64, 128], "position_scale": 0.3}``: the patch convolution of the
ViT is replaced by 3x3 stride-2 convolutions of these widths and a 1x1 projection (Xiao et al.,
"Early Convolutions Help Transformers See Better", arXiv 2106.14881), and the position table starts
as a scaled 2-D sine-cosine table. The grid, and with it every other tensor, is that of the plain
ViT.
"""

import copy
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

import torch
from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
from open_clip.pos_embed import get_2d_sincos_pos_embed
from open_clip.transform import PreprocessCfg
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from densedet.clip.checkpoints import TOKEN_TABLE, keep_token_rows
from densedet.errors import ConfigError
from densedet.weights import write_safetensors

TINY_MODEL = "densedet-tiny"


def shipped_models() -> list[str]:
    """Names of the model configs that densedet ships, sorted."""
    files = (resources.files("densedet.clip") / "resources").iterdir()
    described = [f for f in files if f.name.endswith(".json")]
    configs = [f for f in described if "vision_cfg" in f.read_text(encoding="utf-8")]
    return sorted(f.name.removesuffix(".json") for f in configs)


def read_model_config(name: str = TINY_MODEL) -> dict[str, Any]:
    """Read the shipped JSON config ``name``; raises ConfigError naming the shipped ones."""
    if name not in shipped_models():
        raise ConfigError(f"no CLIP config {name!r} is shipped; there are: {shipped_models()}")
    file = resources.files("densedet.clip") / "resources" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def build_tiny_clip(config: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an open_clip model from a densedet config, with random weights.

    Args:
        config: as read by :func:`read_model_config`; None for ``densedet-tiny``.

    Returns:
        ``open_clip.model.CLIP`` (or ``CustomTextCLIP`` if the config asks for it) in training mode,
        fp32, on the CPU. The weights depend only on torch's global seed. The image statistics are
        those of open_clip (``visual.image_mean``, ``visual.image_std``).
    """
    settings = copy.deepcopy(dict(read_model_config() if config is None else config))
    extra = settings.pop("densedet", {})
    model_class = CustomTextCLIP if settings.pop("custom_text", False) else CLIP
    model = model_class(**settings)
    if "stem" in extra:
        _replace_stem(model.visual, extra["stem"])
    if "position_scale" in extra:
        _init_positions(model.visual, float(extra["position_scale"]))
    statistics = asdict(PreprocessCfg(size=model.visual.image_size))
    set_model_preprocess_cfg(model, statistics)
    return model


def _replace_stem(visual: VisionTransformer, widths: Sequence[int]) -> None:
    patch = visual.patch_size[0]
    if visual.patch_size != (patch, patch) or 2 ** len(widths) != patch:
        raise ConfigError(
            f"a stem of {len(widths)} stride-2 convolutions makes patches of {2 ** len(widths)} "
            f"pixels, the config says patch_size {visual.patch_size}"
        )
    visual.conv1 = convolution_stem(widths, visual.conv1.out_channels)


def convolution_stem(widths: Sequence[int], out_channels: int) -> nn.Sequential:
    """Early-convolution stem: ``[B, 3, H, W]`` to ``[B, out_channels, H / s, W / s]``.

    The stride s is ``2**len(widths)``.
    """
    layers: list[nn.Module] = []
    for before, after in zip([3, *widths], widths, strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    layers.append(nn.Conv2d(widths[-1], out_channels, 1, bias=False))
    return nn.Sequential(*layers)


@torch.no_grad()
def _init_positions(visual: VisionTransformer, scale: float) -> None:
    table = visual.positional_embedding
    side = math.isqrt(table.shape[0] - 1)
    start = get_2d_sincos_pos_embed(table.shape[1], side, cls_token=True)
    table.copy_(scale * torch.from_numpy(start).to(table))


def export_tiny_weights(
    model: nn.Module, used_token_ids: Iterable[int], path: str | os.PathLike[str]
) -> None:
    """Write the weights as safetensors (fp32), with only the used rows of the token embedding.

    Args:
        model: a model of :func:`build_tiny_clip` (open_clip ``CLIP``: text tower at the top level).
        used_token_ids: the tokens that occurred in training; the start and end tokens (the last two
            of the table) are always added. Other rows read back as zero.
        path: the .safetensors file, written atomically.

    Raises:
        OutputError: the file cannot be written.
    """
    state = {name: _plain(tensor) for name, tensor in model.state_dict().items()}
    size = state[TOKEN_TABLE].shape[0]
    state, kept = keep_token_rows(state, {*map(int, used_token_ids), size - 2, size - 1})
    write_safetensors(path, state, {**kept, "format": "pt"})


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor
