"""Checkpoints that are whole or absent, that fit or are refused, and that cannot run code."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from densedet.errors import CheckpointError, ConfigError
from densedet.files import write_text
from densedet.weights import (
    abbreviated,
    load_strictly,
    read_weights,
    require_file,
    write_torch_file,
)
from densedet.weights.names import unwrapped, without_wrappers

logger = logging.getLogger(__name__)

_CONVERT = (
    "; if it is a released DenseCLIP, convert it for the model first: python "
    "tools/convert_checkpoint.py RELEASED.pth OUTPUT.safetensors --config-file CONFIG"
)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, with three differences.

    - Files are written under a temporary name and moved: a reader, or a run that resumes after a
      SIGKILL, never sees half a file.
    - Files are read as data (``weights_only``, or safetensors): nothing in them is executed. Their
      checksums are compared.
    - Weights fit exactly or nothing is loaded: no key may be missing, unexpected or of another
      shape.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``{save_dir}/{name}.pth`` and name it in ``last_checkpoint``, each at once.

        Args:
            kwargs: More entries of the file (tensors, numbers, strings and containers of them).

        Raises:
            OutputError: a file cannot be written; what was there before is whole.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self._plain_model.state_dict()}
        data.update({key: part.state_dict() for key, part in self.checkpointables.items()})
        data.update(kwargs)
        target = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", target)
        write_torch_file(target, data)
        self.tag_last_checkpoint(target.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the file that a resumed training starts from.

        Raises:
            OutputError: that cannot be written.
        """
        write_text(Path(self.save_dir) / "last_checkpoint", last_filename_basename)

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
        load_strictly(self._plain_model, checkpoint.pop("model"), path)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self._load_part(key, checkpoint.pop(key), path)
        return checkpoint

    @property
    def _plain_model(self) -> Any:
        """The model without the wrapper of torch.compile, which puts its name before every name."""
        return getattr(self.model, "_orig_mod", self.model)

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
    if not os.path.exists(file):
        raise CheckpointError(f"checkpoint {path} does not exist")
    require_file(file)
    data: Any = read_weights(file)[0]
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{path} holds a {type(data).__name__}, not a state dict")
    if not isinstance(data.get("model"), Mapping) and "state_dict" not in data:
        data = unwrapped(data, path)  # the weights themselves, or a moving average alone
    data = dict(data) if isinstance(data.get("model"), Mapping) else {"model": data}
    data["model"] = without_wrappers(data["model"])
    bad = [str(k) for k, v in data["model"].items() if not isinstance(v, Tensor)]
    if bad or not data["model"]:
        found = f"entries that are not tensors ({abbreviated(bad)})" if bad else "no weights"
        remedy = _CONVERT if isinstance(data["model"].get("state_dict"), Mapping) else ""
        raise CheckpointError(f"{path} is not a state dict: it has {found}{remedy}")
    return data


def load_trained(
    model: nn.Module, output_dir: str, weights: str | os.PathLike[str] | None = None
) -> None:
    """Give a model the weights that its training made.

    Args:
        output_dir: of the training; ``model_final.pth`` in it is taken if no ``weights`` are named.
        weights: another checkpoint. A model that has nothing to train needs none.

    Raises:
        ConfigError: there is no such file.
        CheckpointError: the weights do not fit.
    """
    if weights is None and not any(p.requires_grad for p in model.parameters()):
        return
    path = Path(output_dir, "model_final.pth") if weights is None else Path(weights)
    if not path.is_file():
        raise ConfigError(
            f"weights {path} do not exist; train with tools/lazyconfig_train_net.py, or name a "
            "checkpoint"
        )
    Checkpointer(model).load(str(path), checkpointables=[])
