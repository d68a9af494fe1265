"""Converting CLIP files: every released format into densedet's own, and back without loss.

densedet's own format is safetensors with open_clip's names. Its metadata remember what a released
file had besides: the dtype of each tensor, and the entries that the architecture determines. So a
file that comes back has the same keys, dtypes and values.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from densedet.clip.activation import check_activation
from densedet.clip.checkpoints import (
    TOKEN_TABLE,
    StoredWeights,
    read_stored,
    require_suffix,
    to_eva_clip_keys,
    write_weights,
)
from densedet.clip.eva import EvaVisual
from densedet.clip.factory import (
    build_visual,
    create_clip,
    match_text_layout,
    resolve_architecture,
    weights_file,
)
from densedet.clip.position import rotary_table
from densedet.errors import CheckpointError
from densedet.weights import PathLike, StateDict, fit_strictly, write_torch_file

Precision = Literal["as-stored", "fp32", "fp16"]

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
_ORIGIN = "origin"  # the key in the metadata


@dataclass(frozen=True)
class Origin:
    """What a released file had besides the weights.

    Attributes:
        eva_clip: whether it had EVA-CLIP's names.
        dtypes: dtype of each tensor (without "torch."), by open_clip's name; of the derived entries
            by the name in the file.
        scalars: the numbers beside the weights in OpenAI's archives.
        notes: ``epoch`` and ``name`` of a training checkpoint.
    """

    eva_clip: bool = False
    dtypes: dict[str, str] = field(default_factory=dict)
    scalars: dict[str, int] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClipWeights:
    """The weights of a CLIP, or of its image tower, that fit an architecture.

    Attributes:
        model: the architecture, see :func:`densedet.clip.create_clip`.
        state: open_clip's names -> tensors in the dtypes of the file that they were read from.
        origin: of the file that they were first read from.
        student: whether the image tower is the student of a distillation's checkpoint, as it
            trained: without interpolation with its teacher.
    """

    model: str
    state: StateDict
    origin: Origin
    student: bool = False


def read_clip(
    path: PathLike, model: str, *, text_from: str | None = None, visual_only: bool = False
) -> ClipWeights:
    """Read a file of any supported format and hold it against an architecture.

    A checkpoint of densedet's distillation holds the student itself. The interpolated weights that
    such a training is evaluated with are those that it exports beside the checkpoint
    (:class:`densedet.engine.interpolation.WeightInterpolation`).

    Args:
        path: see :func:`densedet.clip.read_state_dict`.
        model: an architecture of open_clip, or one that densedet ships.
        text_from: a file (or "shipped") that gives everything but the image tower.
        visual_only: whether to leave out everything but the image tower.

    Raises:
        ConfigError: there is no such architecture, or densedet cannot use it.
        CheckpointError: a file cannot be read, does not fit, or has no text tower.
    """
    model = resolve_architecture(model)
    with torch.device("meta"):
        clip_model = create_clip(model)
    stored = read_stored(path)
    check_activation(clip_model.visual if visual_only else clip_model, stored, path, model)
    state = match_text_layout(clip_model, stored.state)
    if text_from is not None:
        file = _text_file(model, text_from)
        other = read_stored(file)
        check_activation(clip_model, other, file, model)
        rest = {k: v for k, v in other.state.items() if not k.startswith("visual.")}
        state = {**_image_tower(state), **match_text_layout(clip_model, rest)}
    if visual_only:
        state = _image_tower(state)
    elif not any(name.endswith(TOKEN_TABLE) for name in state):
        raise CheckpointError(
            f"{path}: holds no text tower; name a file to take it from (--text-from), or convert "
            "the image tower alone (--visual-only)"
        )
    fitted = _fit(clip_model, state, f"{path} for {model}", visual_only)
    origin = _remembered(path, stored.metadata) or _origin(stored, fitted)
    return ClipWeights(model, fitted, origin, stored.student)


def write_open_clip(
    path: PathLike, weights: ClipWeights, precision: Precision = "as-stored"
) -> None:
    """Write densedet's own format: a .safetensors file with open_clip's names.

    Args:
        path: the file, written atomically.
        weights: as read.
        precision: of the floating tensors; "as-stored" leaves them as they were read.

    Raises:
        ConfigError: the path has another suffix.
        OutputError: the file cannot be written.
    """
    dtype = _PRECISIONS.get(precision)
    state = {name: _cast(tensor, dtype) for name, tensor in weights.state.items()}
    origin = json.dumps(asdict(weights.origin))
    write_weights(path, state, {"model": weights.model, _ORIGIN: origin})


def write_released(
    path: PathLike, weights: ClipWeights, precision: Precision = "as-stored", flat: bool = False
) -> None:
    """Write the published format: a .pt file with the names of EVA-CLIP or of OpenAI.

    Args:
        path: the file, written atomically.
        weights: as read.
        precision: of the floating tensors; "as-stored" is that of the file of origin.
        flat: whether the file is the state dict itself (EVA-CLIP, OpenAI) and not a dict with
            ``epoch``, ``name`` and ``state_dict`` (CLIPSelf).

    Raises:
        ConfigError: the path has another suffix.
        OutputError: the file cannot be written.
    """
    require_suffix(path, ".pt")
    content: dict[str, Any] = to_released(weights, precision)
    if not flat:
        notes = weights.origin.notes
        name = notes.get("name", weights.model)
        content = {"epoch": int(notes.get("epoch", 0)), "name": name, "state_dict": content}
    write_torch_file(path, content)


def to_released(weights: ClipWeights, precision: Precision = "as-stored") -> StateDict:
    """State dict with the published names, derived entries included.

    EVA towers get EVA-CLIP's names and the rotary tables of the native grid (those that the file of
    origin had; all, if it was in another format); others get OpenAI's names, and the numbers of
    OpenAI's archives if the file of origin had them.
    """
    with torch.device("meta"):
        visual = build_visual(create_clip(weights.model))
    origin = weights.origin
    dtype = _PRECISIONS.get(precision)
    state = {
        name: _cast(tensor, dtype or _dtype(origin.dtypes.get(name)))
        for name, tensor in weights.state.items()
    }
    if isinstance(visual, EvaVisual):
        released, derived = to_eva_clip_keys(state), _rotary_entries(visual)
        wanted = set(origin.dtypes) if origin.eva_clip else set(derived)
    else:
        released = {name.removeprefix("text."): tensor for name, tensor in state.items()}
        derived = {name: torch.tensor(number) for name, number in origin.scalars.items()}
        wanted = set(derived)
    for name in derived:
        if name in wanted:
            released[name] = _cast(derived[name], dtype or _dtype(origin.dtypes.get(name)))
    return released


def _text_file(model: str, text_from: str) -> PathLike:
    file = weights_file(model, text_from)
    if file is None:
        raise CheckpointError(f"{text_from}: no such checkpoint file to take the text tower from")
    return file


def _image_tower(state: Mapping[str, Tensor]) -> StateDict:
    return {name: tensor for name, tensor in state.items() if name.startswith("visual.")}


def _fit(clip_model: Any, state: StateDict, source: str, visual_only: bool) -> StateDict:
    if not visual_only:
        return _ordered(clip_model, fit_strictly(clip_model, state, source))
    tower = {name.removeprefix("visual."): tensor for name, tensor in state.items()}
    fitted = _ordered(clip_model.visual, fit_strictly(clip_model.visual, tower, source))
    return {f"visual.{name}": tensor for name, tensor in fitted.items()}


def _ordered(module: nn.Module, state: StateDict) -> StateDict:
    return {name: state[name] for name in module.state_dict() if name in state}


def _origin(stored: StoredWeights, fitted: StateDict) -> Origin:
    single = {k: v for k, v in stored.derived.items() if v.numel() == 1}
    notes = {k: v for k, v in stored.metadata.items() if k in ("epoch", "name")}
    return Origin(
        eva_clip=stored.eva_clip,
        dtypes={
            k: str(v.dtype).removeprefix("torch.") for k, v in (fitted | stored.derived).items()
        },
        scalars={k: int(v) for k, v in single.items()},
        notes=notes if notes.get("epoch", "").isdigit() else {},
    )


def _remembered(path: PathLike, metadata: Mapping[str, str]) -> Origin | None:
    if _ORIGIN not in metadata:
        return None
    try:
        origin = Origin(**json.loads(metadata[_ORIGIN]))
        for name in origin.dtypes.values():
            _dtype(name)
        return origin
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its metadata {_ORIGIN!r} were not written by densedet ({error}); "
            "convert the released file again"
        ) from error


def _rotary_entries(visual: EvaVisual) -> StateDict:
    rotary = visual.rotary
    if rotary is None:
        return {}
    grid = visual.tower.trunk.patch_embed.grid_size
    sine, cosine = rotary_table(grid, rotary.dim, rotary.reference, rotary.temperature)
    places = ["visual.rope", *(f"visual.blocks.{i}.attn.rope" for i in range(visual.depth))]
    tables = {"freqs_cos": cosine, "freqs_sin": sine}
    return {f"{place}.{name}": table for place in places for name, table in tables.items()}


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def _dtype(name: str | None) -> torch.dtype | None:
    dtype: torch.dtype | None = getattr(torch, name) if name else None
    return dtype
