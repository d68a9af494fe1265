"""Checkpoints that are whole or absent, that fit or are refused, and that cannot run code."""

import logging
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from densedet.errors import CheckpointError
from densedet.files import atomic_path

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with three differences.

    - Files are written under a temporary name and moved: a reader, or a run that resumes after a
      SIGKILL, never sees half a file.
    - Files are read as data (``weights_only``, or safetensors): nothing in them is executed.
    - Weights fit exactly or nothing is loaded: no key may be missing, unexpected or of another
      shape.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{save_dir}/{name}.pth`` and name it in ``last_checkpoint``, each at once.

        Args:
            kwargs: More entries of the file (tensors, numbers, strings and containers of them).
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(kwargs)
        target = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", target)
        with atomic_path(target) as temporary:
            torch.save(data, temporary)
        self.tag_last_checkpoint(target.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file that a resumed training starts from."""
        with atomic_path(Path(self.save_dir) / "last_checkpoint") as temporary:
            temporary.write_text(last_filename_basename, encoding="utf-8")

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, strictly, and the state of ``checkpointables`` (None: all that there are).

        Args:
            path: A file or a URL that Detectron2's PathManager knows; "" loads nothing.

        Returns:
            What else the file holds, e.g. ``iteration``.

        Raises:
            CheckpointError: the file is missing, unreadable, would run code, or does not fit; then
                the model is as it was.
        """
        if not path:
            logger.info("No checkpoint given: the weights are those the model was built with")
            return {}
        logger.info("Loading %s", path)
        checkpoint = read_checkpoint(path)
        load_weights(self.model, checkpoint.pop("model"), path)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self._load_part(key, checkpoint.pop(key), path)
        return checkpoint

    def _load_part(self, key: str, state: Any, path: str) -> None:
        try:
            self.checkpointables[key].load_state_dict(state)
        except (ValueError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: the state of {key!r} belongs to another training: {error}; "
                "restore the config it was made with, or start without --resume"
            ) from error

    def clean(self) -> None:
        """Remove what a killed process may have left behind while writing."""
        for file in Path(self.save_dir).glob(".model_*.pth"):
            logger.info("Removing the unfinished checkpoint %s", file)
            file.unlink(missing_ok=True)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a ``.pth`` or ``.safetensors`` file as data.

    Returns:
        A dict with ``model`` (names to CPU tensors) and, for a training's own file, more.

    Raises:
        CheckpointError: the file is missing, cut short, would run code, or holds no state dict.
    """
    try:
        file = PathManager.get_local_path(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be fetched: {error}") from error
    if not os.path.isfile(file):
        raise CheckpointError(f"checkpoint {path} does not exist")
    data: Any = _read_safetensors(file) if file.endswith(".safetensors") else _read_torch(file)
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not a state dict")
    data = dict(data) if isinstance(data.get("model"), Mapping) else {"model": data}
    data["model"] = _without_module(data["model"])
    bad = [str(k) for k, v in data["model"].items() if not isinstance(v, Tensor)]
    if bad or not data["model"]:
        found = f"entries that are not tensors ({_some(bad)})" if bad else "no weights"
        raise CheckpointError(f"{path} is not a state dict: it has {found}")
    return data


def _read_safetensors(file: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error


def _read_torch(file: str) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with open(file, "rb") as handle:
            pickled = handle.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        reason = _first_line(error, having="unsupported")
        if pickled:
            raise CheckpointError(
                f"{file} is refused: it holds more than tensors and plain values and could run "
                f"code ({reason}); convert it to safetensors where it was made"
            ) from error
        raise CheckpointError(f"{file} is not a checkpoint: {reason}") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is damaged or cut short ({_first_line(error)}); copy it again"
        ) from error


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: str) -> None:
    """Load ``weights`` into ``model`` if they fit exactly; otherwise leave it as it was.

    A parameter that the model holds under two names may have one of them in the file.

    Raises:
        CheckpointError: names missing, unexpected and mismatched keys of ``path``.
    """
    own = model.state_dict(keep_vars=True)
    present = {id(own[key]) for key in weights if key in own}
    missing = [key for key in own if key not in weights and id(own[key]) not in present]
    unexpected = [key for key in weights if key not in own]
    mismatched = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in weights
        if key in own and isinstance(own[key], Tensor) and own[key].shape != weights[key].shape
    ]
    if missing or unexpected or mismatched:
        raise CheckpointError(
            f"{path} is a checkpoint of another architecture: missing {_some(missing)}; unexpected "
            f"{_some(unexpected)}; mismatched {_some(mismatched)}; nothing was loaded"
        )
    model.load_state_dict(dict(weights), strict=False)


def _without_module(weights: Mapping[str, Any]) -> dict[str, Any]:
    prefix = "module."  # of a model that was saved inside DistributedDataParallel
    if weights and all(str(key).startswith(prefix) for key in weights):
        return {key[len(prefix) :]: value for key, value in weights.items()}
    return dict(weights)


def _some(names: list[str], limit: int = 8) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{', '.join(names[:limit])}{more}"


def _first_line(error: Exception, having: str = "") -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    wanted = [line for line in lines if having in line.lower()] or lines
    return wanted[0] if wanted else type(error).__name__
