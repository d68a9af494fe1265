"""Reading CLIP weights: every released format becomes a state dict with open_clip's names.

Formats: open_clip (safetensors or torch files), OpenAI CLIP (TorchScript archives and their state
dicts), EVA-CLIP (``EVA02_CLIP_*.pt``) and CLIPSelf (arXiv 2310.01403; a training checkpoint around
EVA-CLIP keys). No file is ever allowed to run Python code.
"""

import hashlib
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from densedet.errors import CheckpointError

StateDict = dict[str, Tensor]
PathLike = str | os.PathLike[str]

TOKEN_TABLE = "token_embedding.weight"
TOKEN_ROWS = TOKEN_TABLE + ".rows"
TOKEN_IDS = TOKEN_TABLE + ".ids"

_ARCHIVE_SCALARS = ("input_resolution", "context_length", "vocab_size")

_ASKS_FOR_CODE = re.compile(r"unsupported (global|class)|unrecognized function", re.IGNORECASE)

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
        return _read_safetensors(path)
    if _is_torchscript(path):
        return _read_torchscript(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> StateDict:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(_damaged(path, error)) from error
    return _expand_token_rows(state, metadata, path) if TOKEN_ROWS in state else state


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
        raise CheckpointError(_damaged(path, error)) from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
        )
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off: it is not passed on.
        if _ASKS_FOR_CODE.search(str(error)):
            name = re.search(r"GLOBAL:? ([\w.]+)", str(error))
            raise CheckpointError(
                f"{path}: reading it would run code from the file"
                f"{f' ({name[1]})' if name else ''}, which is never done; in the program that "
                "wrote it, save plain tensors: torch.save(model.state_dict(), path)"
            ) from error
        raise CheckpointError(_damaged(path, "its content is not a torch file's")) from error
    except Exception as error:  # from a damaged file the unpickler raises whatever happens
        raise CheckpointError(_damaged(path, error)) from error


def _damaged(path: Path, reason: object) -> str:
    first = (str(reason).strip() or type(reason).__name__).splitlines()[0].split(". ")[0]
    return f"{path}: truncated or not a checkpoint ({first}); download or export it again"


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
            f"{path}: not a state dict, these entries are no tensors: {_abbreviated(odd)}; "
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


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load ``state`` if it fits ``module`` exactly; otherwise change nothing.

    Args:
        module: the receiver; values are copied into its parameters and buffers, keeping their
            dtype.
        state: names -> tensors; an array of one element fits any other shape of one element.
        source: what to call the weights in the message (usually the file).

    Raises:
        CheckpointError: names the missing, the unexpected and the differently shaped keys.
    """
    own = module.state_dict()
    fitted = {name: _fitted(tensor, own.get(name)) for name, tensor in state.items()}
    problems = {
        "missing": [name for name in own if name not in fitted],
        "unexpected": [name for name in fitted if name not in own],
        "of another shape": [
            f"{name} {tuple(t.shape)} for {tuple(own[name].shape)}"
            for name, t in fitted.items()
            if name in own and t.shape != own[name].shape
        ],
    }
    found = [f"{len(keys)} {kind}: {_abbreviated(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{source}: does not fit {type(module).__name__}, nothing was loaded; "
            f"{'; '.join(found)}. Choose the model that the weights belong to"
        )
    module.load_state_dict(fitted, strict=True)


def _fitted(tensor: Tensor, own: Tensor | None) -> Tensor:
    """Let ``[]`` and ``[1]`` pass for each other (``logit_scale`` in different versions)."""
    single = own is not None and tensor.numel() == 1 == own.numel()
    return tensor.reshape(own.shape) if single and own is not None else tensor


def _abbreviated(keys: list[str], limit: int = 4) -> str:
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, dtypes, shapes and values, independent of the order of the entries."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: PathLike) -> str:
    """sha256 (hex) of a file's bytes; raises CheckpointError if there is no such file."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; check the path or download it")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
