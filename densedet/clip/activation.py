"""Which activation weights were trained with: QuickGELU of OpenAI's CLIP, or GELU.

The names and shapes of the weights are the same; in the other architecture they load and give other
features. What a file says of it is compared with the model.
"""

import json
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transformer import QuickGELU
from torch import nn

from densedet.clip.checkpoints import StoredWeights
from densedet.clip.tiny import read_model_config, shipped_models
from densedet.errors import CheckpointError

_KEY = "quick_gelu"
_SUFFIX = "-quickgelu"
_MAX_CONFIG = 1 << 20  # bytes


def check_activation(module: nn.Module, stored: StoredWeights, source: object, model: str) -> None:
    """Refuse weights that were trained with the other activation than that of a model.

    Known is: OpenAI's archives have three numbers beside the weights; files of densedet name their
    architecture; beside open_clip's own files on the Hugging Face Hub lies their config. Where
    nothing is known, nothing is said; nor where the module has neither activation (a ResNet).

    Args:
        module: what the weights are for, a CLIP or a tower of it.
        stored: as read.
        source: the file.
        model: the name of the architecture, for the remedy.

    Raises:
        CheckpointError: naming the file, why it is known, and the architecture to take.
    """
    known = _known(stored, Path(str(source)))
    if known is not None:
        _compare(module, *known, source, model)


def check_activation_of_tag(model: str, tag: str, image_only: bool = False) -> None:
    """The same for weights of open_clip's own list, before they are downloaded.

    Args:
        model: the architecture.
        tag: one of its tags; the list says the activation of each.
        image_only: whether only the image tower is wanted; that of a ResNet has neither activation.

    Raises:
        CheckpointError: as from `check_activation`.
    """
    config = open_clip.get_model_config(model)
    quick, own = (bool(c.get(_KEY)) for c in (open_clip.get_pretrained_cfg(model, tag), config))
    resnet = isinstance(config["vision_cfg"].get("layers"), list)
    if quick != own and not (image_only and resnet):
        raise CheckpointError(
            _refusal(quick, "open_clip's list says so", f"weights {tag!r}", model)
        )


def quick_name(name: str) -> str:
    """The architecture of open_clip that is this one with QuickGELU; "" if there is none."""
    quick = name + _SUFFIX
    return quick if quick in open_clip.list_models() else ""


def _compare(module: nn.Module, quick: bool, why: str, source: object, model: str) -> None:
    kinds = {type(part) for part in module.modules()} & {QuickGELU, nn.GELU}
    if kinds <= {QuickGELU if quick else nn.GELU}:
        return
    raise CheckpointError(_refusal(quick, why, source, model))


def _refusal(quick: bool, why: str, source: object, model: str) -> str:
    trained, found = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    other = quick_name(model) if quick else model.removesuffix(_SUFFIX)
    remedy = f"take the architecture {other}" if other not in ("", model) else "take one with it"
    return (
        f"{source}: trained with {trained} ({why}), and {model} computes {found}, which gives "
        f"other features; {remedy}"
    )


def _known(stored: StoredWeights, path: Path) -> tuple[bool, str] | None:
    if stored.openai:
        return True, "it has the numbers of OpenAI's archives, such as input_resolution"
    name = stored.metadata.get("model", "")
    config = read_model_config(name) if name in shipped_models() else None
    if config is None and ":" not in name:
        config = open_clip.get_model_config(name)
    if config is not None:
        return bool(config.get(_KEY, False)), f"it is for {name}"
    beside = path.with_name("open_clip_config.json")
    if path.name.startswith("open_clip_") and beside.is_file():
        config = _read_config(beside)
        if config is not None:
            return bool(config.get(_KEY, False)), f"{beside.name} beside it"
    return None


def _read_config(path: Path) -> dict[str, Any] | None:
    """``model_cfg`` of an open_clip_config.json; None if it is none."""
    try:
        if path.stat().st_size > _MAX_CONFIG:
            return None
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return config if isinstance(config, dict) else None
