"""Writing a CLIP whose image tower has been trained, as a file that all of densedet reads."""

from collections.abc import Mapping

import torch
from torch import Tensor

from densedet.clip.checkpoints import require_suffix, write_weights
from densedet.clip.factory import create_clip, resolve_architecture
from densedet.weights import PathLike, load_strictly


def export_clip(
    path: PathLike,
    model: str,
    pretrained: str | None,
    visual_state: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a whole CLIP with another image tower: safetensors, open_clip's names, fp32.

    The file is one for ``create_clip(model, path)`` and the functions beside it. torch's random
    numbers are left as they were, so that a training may export between its steps.

    Args:
        path: the .safetensors file, written atomically.
        model: the architecture, see :func:`densedet.clip.create_clip`.
        pretrained: where the text tower and the temperature come from, see there.
        visual_state: the image tower, names of ``ClipVisual.tower.state_dict()``, on any device.
        metadata: strings to keep in the file, beside ``model``.

    Raises:
        ConfigError: the path has another suffix, or there is no such architecture.
        CheckpointError: ``pretrained`` cannot be read, or a tower does not fit ``model``.
        OutputError: the file cannot be written.
    """
    require_suffix(path, ".safetensors")
    model = resolve_architecture(model, pretrained)
    with torch.random.fork_rng(devices=[]):
        clip_model = create_clip(model, pretrained)
    load_strictly(clip_model.visual, visual_state, source=f"the image tower for {path}")
    write_weights(path, clip_model.state_dict(), {"model": model, **(metadata or {})})
