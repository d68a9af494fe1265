"""Reading CLIP weights: every released format becomes a state dict with open_clip's names.

Formats: open_clip (safetensors or torch files), OpenAI CLIP (TorchScript archives and their state
dicts), EVA-CLIP (``EVA02_CLIP_*.pt``) and CLIPSelf (arXiv 2310.01403; a training checkpoint around
EVA-CLIP keys). No file is ever allowed to run Python code.
"""

import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densedet.errors import CheckpointError
from densedet.weights import (
    PathLike,
    StateDict,
    abbreviated,
    damaged,
    read_safetensors,
    read_torch_file,
)

TOKEN_TABLE = "token_embedding.weight"
TOKEN_ROWS = TOKEN_TABLE + ".rows"
TOKEN_IDS = TOKEN_TABLE + ".ids"

_ARCHIVE_SCALARS = ("input_resolution", "context_length", "vocab_size")

# EVA-CLIP -> open_clip (timm), inside a block of the vision tower.
_EVA_BLOCK_NAMES = (
    (".attn.q_bias", ".attn.q_proj.bias"),
    (".attn.v_bias", ".attn.v_proj.bias"),
    (".attn.inner_attn_ln.", ".attn.norm."),
    (".mlp.w1.", ".mlp.fc1_g."),
    (".mlp.w2.", ".mlp.fc1_x."),
    (".mlp.ffn_ln.", ".mlp.norm."),
    (".mlp.w3.", ".mlp.fc2."),
)
_EVA_PREFIX, _TIMM_PREFIX = "visual.", "visual.trunk."


def read_state_dict(path: PathLike) -> StateDict:
    """Read a checkpoint of any supported format without running code of it.

    Args:
        path: .safetensors, or a torch file (.pt, .pth, .bin, TorchScript archive). A training
            checkpoint with the weights under ``state_dict`` and keys that start with ``module.``
            are understood.

    Returns:
        open_clip parameter names -> CPU tensors, half precision widened to fp32. The text tower's
        keys stay where the file has them (top level, or under ``text.``).

    Raises:
        CheckpointError: the file is missing, truncated, needs code to be read, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; check the path or download it")
    state = _tensors(path, _read_any(path))
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: t for name, t in state.items() if name not in _ARCHIVE_SCALARS}
    if is_eva_clip(state):
        state = from_eva_clip_keys(state)
    return {name: _widened(tensor) for name, tensor in state.items()}


def _read_any(path: Path) -> Any:
    if path.suffix == ".safetensors":
        state, metadata = read_safetensors(path)
        return _expand_token_rows(state, metadata, path) if TOKEN_ROWS in state else state
    if _is_torchscript(path):
        return _read_torchscript(path)
    return read_torch_file(path)


def _expand_token_rows(state: StateDict, metadata: Mapping[str, str], path: Path) -> StateDict:
    """Rebuild a token table of which the file stores only some rows; the others are zero."""
    if TOKEN_IDS not in state or not metadata.get("vocab_size", "").isdigit():
        raise CheckpointError(
            f"{path}: {TOKEN_ROWS} without {TOKEN_IDS} or 'vocab_size'; export it again"
        )
    rows, ids = state.pop(TOKEN_ROWS), state.pop(TOKEN_IDS).long()
    table = rows.new_zeros(int(metadata["vocab_size"]), rows.shape[1])
    table[ids] = rows
    return {**state, TOKEN_TABLE: table}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> StateDict:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, the archives remain
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(damaged(path, error)) from error


def _tensors(path: Path, content: Any) -> StateDict:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__}, not named weights; "
            "save torch.save(model.state_dict(), path)"
        )
    state = {k: v for k, v in content.items() if k.removeprefix("module.") not in _ARCHIVE_SCALARS}
    odd = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if odd or not state:
        raise CheckpointError(
            f"{path}: not a state dict, these entries are no tensors: {abbreviated(odd)}; "
            "save torch.save(model.state_dict(), path)"
        )
    return state


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def is_eva_clip(names: Iterable[str]) -> bool:
    """Whether the names are those of a released EVA-CLIP or CLIPSelf file."""
    return any(n.startswith(("visual.blocks.", "visual.patch_embed.")) for n in names)


def from_eva_clip_keys(state: Mapping[str, Tensor]) -> StateDict:
    """Rename EVA-CLIP's keys to open_clip's (timm trunk) and drop the rotary tables.

    The tables (any key with ``rope.``) are functions of the input size and are never loaded.
    """
    kept = {name: tensor for name, tensor in state.items() if "rope." not in name}
    return {_renamed(name, _EVA_PREFIX, _TIMM_PREFIX, 0): t for name, t in kept.items()}


def to_eva_clip_keys(state: Mapping[str, Tensor]) -> StateDict:
    """Inverse of :func:`from_eva_clip_keys`; the rotary tables are not brought back."""
    return {_renamed(name, _TIMM_PREFIX, _EVA_PREFIX, 1): tensor for name, tensor in state.items()}


def _renamed(name: str, prefix: str, new_prefix: str, column: int) -> str:
    if not name.startswith(prefix):
        return name
    name = new_prefix + name.removeprefix(prefix)
    for pair in _EVA_BLOCK_NAMES:
        name = name.replace(pair[column], pair[1 - column])
    return name
