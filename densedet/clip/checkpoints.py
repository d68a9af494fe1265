"""Reading CLIP weights: every released format becomes a state dict with open_clip's names.

Formats: open_clip (safetensors or torch files), OpenAI CLIP (TorchScript archives and their state
dicts), EVA-CLIP (``EVA02_CLIP_*.pt``), CLIPSelf (arXiv 2310.01403; a training checkpoint around
EVA-CLIP keys), and the checkpoints of densedet's own distillation (the student's image tower). No
file is ever allowed to run Python code.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densedet.errors import CheckpointError, ConfigError
from densedet.weights import (
    PathLike,
    StateDict,
    abbreviated,
    check_archive,
    damaged,
    is_torchscript,
    read_weights,
    require_file,
    write_safetensors,
)
from densedet.weights.names import find_mapping, find_prefix, unwrapped, without_prefixes

TOKEN_TABLE = "token_embedding.weight"
TOKEN_ROWS = TOKEN_TABLE + ".rows"
TOKEN_IDS = TOKEN_TABLE + ".ids"

_ANCHORS = ("logit_scale", "visual.")  # every CLIP has these names
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
_STUDENT_PREFIX = "student.tower."
_TRANSFORMERS = ("text_model.", "vision_model.")


@dataclass(frozen=True)
class StoredWeights:
    """What a file holds: its tensors under open_clip's names, and what is not needed of it.

    Attributes:
        state: open_clip parameter names -> CPU tensors in the dtype of the file.
        derived: the entries left out because the architecture determines them (rotary tables of
            EVA-CLIP, scalars of OpenAI's archives), by the name in the file.
        eva_clip: whether the file has the names of EVA-CLIP.
        metadata: of a safetensors file, its own; of a training checkpoint, ``epoch`` and ``name``.
        student: whether it is a checkpoint of densedet's distillation; the student of it is read.
        openai: whether the numbers are in the file that OpenAI's archives have beside the weights.
    """

    state: StateDict
    derived: StateDict
    eva_clip: bool
    metadata: dict[str, str]
    student: bool = False
    openai: bool = False

    @property
    def widened(self) -> StateDict:
        """The tensors, half precision widened to fp32."""
        return {name: _widened(tensor) for name, tensor in self.state.items()}


def read_state_dict(path: PathLike) -> StateDict:
    """Read a checkpoint of any supported format without running code of it.

    Args:
        path: .safetensors, or a torch file (.pt, .pth, .bin, TorchScript archive). A training
            checkpoint with the weights under ``state_dict`` or ``model``, and names that all begin
            with ``module.``, ``model.``, ``_orig_mod.`` or those of a moving average are
            understood, and so are others that hold one CLIP; of a distillation's checkpoint the
            student itself is read, without interpolation.

    Returns:
        open_clip parameter names -> CPU tensors, half precision widened to fp32. The text tower's
        keys stay where the file has them (top level, or under ``text.``).

    Raises:
        CheckpointError: the file is missing, truncated, needs code to be read, or holds no weights.
    """
    return read_stored(path).widened


def read_stored(path: PathLike) -> StoredWeights:
    """Read a checkpoint as :func:`read_state_dict` does, but keep its dtypes and remember the rest.

    Raises:
        CheckpointError: as there.
    """
    path = Path(path)
    content, metadata = _read_any(path)
    content = find_mapping(unwrapped(content, path), _ANCHORS[0], path)
    named = without_prefixes(_named(path, content), path)
    student = any(name.startswith(_STUDENT_PREFIX) for name in named)
    named = named if student else find_prefix(named, _ANCHORS, path)
    state = _tensors(path, named)
    if student:
        state = {
            "visual." + name.removeprefix(_STUDENT_PREFIX): tensor
            for name, tensor in state.items()
            if name.startswith(_STUDENT_PREFIX)
        }
    eva_clip = is_eva_clip(state)
    names = [n for n in state if n in _ARCHIVE_SCALARS or (eva_clip and "rope." in n)]
    derived = {name: state.pop(name) for name in names}
    renamed = from_eva_clip_keys(state) if eva_clip else state
    openai = any(name in named for name in _ARCHIVE_SCALARS)
    return StoredWeights(renamed, derived, eva_clip, metadata, student, openai)


def write_weights(path: PathLike, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a state dict as safetensors, atomically, in the dtypes that it has.

    Of a token table at the top level with rows of zeros (tokens that a training never met), only
    the other rows are written; `read_state_dict` brings the zeros back.

    Args:
        path: ends in .safetensors.
        state: names -> tensors on any device.
        metadata: strings to keep beside the weights.

    Raises:
        ConfigError: the path has another suffix.
        OutputError: the file cannot be written, also where the disk is full.
    """
    require_suffix(path, ".safetensors")
    plain = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
    kept: dict[str, str] = {}
    if TOKEN_TABLE in plain:
        used = plain[TOKEN_TABLE].any(dim=1)
        if not used.all():
            plain, kept = keep_token_rows(plain, used.nonzero()[:, 0].tolist())
    write_safetensors(path, plain, {"format": "pt", **metadata, **kept})


def require_suffix(path: PathLike, suffix: str) -> None:
    """Raise ConfigError unless ``path`` ends in ``suffix``, which decides how it is read."""
    if Path(path).suffix != suffix:
        raise ConfigError(f"{path}: weights of this format are written to a {suffix} file")


def _read_any(path: Path) -> tuple[Any, dict[str, str]]:
    require_file(path)
    if is_torchscript(path):
        return _read_torchscript(path), {}
    content, metadata = read_weights(path)
    if TOKEN_ROWS in content:
        content = _expand_token_rows(content, metadata, path)
    notes = {}
    if isinstance(content, Mapping):
        notes = {
            k: str(content[k]) for k in ("epoch", "name") if type(content.get(k)) in (int, str)
        }
    return content, {**notes, **metadata}


def keep_token_rows(
    state: Mapping[str, Tensor], ids: Iterable[int]
) -> tuple[StateDict, dict[str, str]]:
    """Replace the token table by some of its rows; the others read back as zero.

    Returns:
        The new state dict, and the metadata that a file of it must have.
    """
    rest = dict(state)
    table = rest.pop(TOKEN_TABLE)
    rows = torch.tensor(sorted(ids), dtype=torch.long)
    rest[TOKEN_ROWS] = table[rows].contiguous()
    rest[TOKEN_IDS] = rows.to(torch.int32)
    return rest, {"vocab_size": str(table.shape[0])}


def _expand_token_rows(state: StateDict, metadata: Mapping[str, str], path: Path) -> StateDict:
    """Rebuild a token table of which the file stores only some rows; the others are zero."""
    if TOKEN_IDS not in state or not metadata.get("vocab_size", "").isdigit():
        raise CheckpointError(
            f"{path}: {TOKEN_ROWS} without {TOKEN_IDS} or 'vocab_size'; export it again"
        )
    rows, ids = state.pop(TOKEN_ROWS), state.pop(TOKEN_IDS).long()
    size = int(metadata["vocab_size"])
    if ids.shape != rows.shape[:1] or ids.lt(0).any() or ids.ge(size).any():
        raise CheckpointError(f"{path}: {TOKEN_IDS} does not fit to {TOKEN_ROWS}; export it again")
    table = rows.new_zeros(size, rows.shape[1])
    table[ids] = rows
    return {**state, TOKEN_TABLE: table}


def _read_torchscript(path: Path) -> StateDict:
    check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, the archives remain
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(damaged(path, error)) from error


def _named(path: Path, content: Any) -> Mapping[str, Any]:
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not named or not content:
        raise CheckpointError(
            f"{path}: holds {type(content).__name__}, not named weights; "
            "save torch.save(model.state_dict(), path)"
        )
    return content


def _tensors(path: Path, content: Mapping[str, Any]) -> StateDict:
    if any(name.startswith(_TRANSFORMERS) for name in content):
        raise CheckpointError(
            f"{path}: has the names of Hugging Face transformers (CLIPModel); take the same "
            "weights in the format of open_clip or OpenAI: a tag of open_clip, such as 'openai', "
            "or the open_clip file of their repository"
        )
    state = {
        name: value
        for name, value in content.items()
        if name not in _ARCHIVE_SCALARS or isinstance(value, Tensor)
    }
    odd = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd or not set(state) - set(_ARCHIVE_SCALARS):
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
