"""A training's result as an interpolation of its weights and those it started from.

CLIPSelf (arXiv 2310.01403) saves and evaluates ``alpha * student + (1 - alpha) * teacher``: part of
what the images taught is kept at the accuracy of the original model on whole images. It is no
moving average: the running student never sees it.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import nn

from densedet.clip.export import export_clip
from densedet.clip.factory import weights_file
from densedet.errors import ConfigError
from densedet.weights import StateDict, abbreviated

logger = logging.getLogger(__name__)

_EXPORT_KEYS = ("model", "pretrained", "file_name")


def interpolate(student: nn.Module, teacher: nn.Module, alpha: float) -> StateDict:
    """``alpha * student + (1 - alpha) * teacher`` over every floating entry of the state dicts.

    Entries of other types (counters of batch norms) are the student's. Where the two agree, and
    with ``alpha`` 1, the result is the student's value exactly.

    Args:
        student, teacher: modules of the same architecture, on the same device.
        alpha: weight of the student, in (0, 1].

    Returns:
        New tensors under the names of the state dicts.

    Raises:
        ConfigError: the two have other names or shapes.
    """
    own, other = student.state_dict(), teacher.state_dict()
    _check_alike(own, other)
    with torch.no_grad():
        return {
            name: torch.lerp(other[name].to(value.dtype), value, alpha)
            if value.is_floating_point()
            else value.clone()
            for name, value in own.items()
        }


def _check_alike(own: StateDict, other: StateDict) -> None:
    odd = sorted(own.keys() ^ other.keys()) or [k for k in own if own[k].shape != other[k].shape]
    if odd:
        raise ConfigError(
            f"weights of two architectures cannot be interpolated: student and teacher differ in "
            f"{abbreviated(odd)}; build both from the same CLIP"
        )


class WeightInterpolation(HookBase):
    """Evaluate and export the interpolation of a model's ``student`` and ``teacher``.

    The student that trains and the checkpoints of the training stay as they are, so that a resumed
    training goes on exactly. The published recipes use 0.7 (ViT-B) and 0.95 (ViT-L).

    Args:
        alpha: weight of the student, in (0, 1]; 1 is the student itself. (The published flag stands
            at 2.0 for "off": leave the hook out, or say 1.)
        export: what is written beside every checkpoint, for
            :func:`densedet.clip.export.export_clip`: ``model`` and ``pretrained`` (the CLIP that
            gives the text tower) and ``file_name``, in the folder of the checkpoints. None exports
            nothing.

    Raises:
        ConfigError: ``alpha`` outside (0, 1], or other keys in ``export``.
        CheckpointError: the weights that ``export`` names do not exist.
    """

    def __init__(self, alpha: float, export: Mapping[str, Any] | None = None) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha <= 1:
            raise ConfigError(
                f"WeightInterpolation.alpha={alpha!r} must lie in (0, 1]; 1 takes the student alone"
            )
        self.alpha = float(alpha)
        self._export = None if export is None else _checked(export)

    def before_train(self) -> None:
        """Refuse a model that cannot be interpolated.

        Raises:
            ConfigError: the model has no student and teacher of one architecture.
        """
        model = self.trainer.model
        student, teacher = _pair(getattr(model, "module", model))
        _check_alike(student.state_dict(), teacher.state_dict())

    @contextmanager
    def evaluation_weights(self, model: nn.Module) -> Iterator[None]:
        """Give ``model.student`` the interpolated weights inside the block.

        They are put back bit for bit, also if the block raises.

        Raises:
            ConfigError: the model has no student and teacher of one architecture.
        """
        student, teacher = _pair(model)
        weights = interpolate(student, teacher, self.alpha)
        logger.info("Evaluating the student's weights interpolated with alpha %g", self.alpha)
        state = student.state_dict()
        saved = {name: value.clone() for name, value in state.items()}
        try:
            _copy(state, weights)
            yield
        finally:
            _copy(state, saved)

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the interpolated CLIP to ``{folder}/{file_name}``; nothing without ``export``.

        Raises:
            ConfigError: the model has no student and teacher of one architecture.
            OutputError: the file cannot be written.
        """
        if self._export is None:
            return
        student, teacher = _pair(model)
        path = folder / self._export["file_name"]
        weights = interpolate(student.tower, teacher.tower, self.alpha)
        logger.info("Exporting CLIP to %s", path)
        export_clip(path, self._export["model"], self._export["pretrained"], weights)


def _pair(model: nn.Module) -> tuple[Any, Any]:
    student, teacher = (getattr(model, name, None) for name in ("student", "teacher"))
    if student is None or teacher is None:
        raise ConfigError(
            f"{type(model).__name__} has no student and teacher: WeightInterpolation in "
            "train.hooks is for CLIPSelf and RegionCLIP"
        )
    return student, teacher


@torch.no_grad()
def _copy(state: StateDict, values: StateDict) -> None:
    for name, value in values.items():
        state[name].copy_(value)


def _checked(export: Mapping[str, Any]) -> dict[str, Any]:
    if set(export) != set(_EXPORT_KEYS):
        raise ConfigError(
            f"WeightInterpolation.export has the keys {', '.join(map(str, export)) or 'none'}; "
            f"it needs {', '.join(_EXPORT_KEYS)}"
        )
    name = str(export["file_name"])
    if Path(name).name != name or not name.endswith(".safetensors"):
        raise ConfigError(
            f"WeightInterpolation.export.file_name={name!r} must be a plain name ending in "
            ".safetensors; the folder is train.output_dir"
        )
    weights_file(export["model"], export["pretrained"])  # before the training, not after it
    return dict(export)
