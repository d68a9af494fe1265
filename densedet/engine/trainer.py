"""The training step: mixed precision on any device, clipped gradients, finite losses."""

import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

from densedet.errors import ConfigError, DensedetError

_REMEDY = "a lower learning rate, a longer warm-up or train.clip_grad may help"


class NonFiniteLossError(DensedetError, FloatingPointError):
    """A prediction, a loss or the gradient norm became infinite or NaN.

    The weights are those before the step.
    """


class LossScaler:
    """Loss scaling for fp16 (Micikevicius et al., arXiv 1710.03740, section 3.2), CUDA only.

    Args:
        dynamic: Let the scale grow and shrink; False keeps ``init_scale`` as it is.
        options: Other arguments of ``torch.amp.GradScaler``, e.g. ``init_scale``.
    """

    def __init__(self, dynamic: bool = True, **options: Any) -> None:
        self.dynamic = dynamic
        try:
            self.scaler = torch.amp.GradScaler("cuda", **options)
        except (TypeError, AssertionError) as error:
            raise ConfigError(f"train.grad_scaler: {error}") from error
        self.initial = self.scaler.get_scale()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step ``optimizer`` unless a gradient overflowed, then adapt the scale."""
        self.scaler.step(optimizer)
        if self.dynamic:
            self.scaler.update()
        else:
            self.scaler.update(self.initial)


class Trainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with autocast, global-norm clipping and finite losses.

    Args:
        model: Takes a batch, returns a dict of scalar losses (or one scalar).
        data_loader: Yields batches, forever.
        optimizer: Steps the parameters of ``model`` that are not frozen.
        device: Where the model is.
        dtype: float32 (no autocast), bfloat16 or float16 (CUDA only, with loss scaling).
        clip_grad: ``max_norm`` and ``norm_type`` of ``torch.nn.utils.clip_grad_norm_``, over all
            parameters of the optimizer together; None does not clip.
        grad_scaler: Arguments of :class:`LossScaler`, for float16.

    The norm before clipping is the scalar ``grad_norm`` of the event storage.

    Raises:
        ConfigError: float16 on a device other than CUDA.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        clip_grad: Mapping[str, Any] | None = None,
        grad_scaler: Mapping[str, Any] | None = None,
    ) -> None:
        check_precision(device, dtype)
        super().__init__(model, data_loader, optimizer)
        self.device = device
        self.dtype = dtype
        self.clip_grad = dict(clip_grad) if clip_grad else None
        self.scaler = LossScaler(**(grad_scaler or {})) if dtype == torch.float16 else None
        self._last_losses: dict[str, Tensor] = {}

    def run_step(self) -> None:
        """Run one iteration.

        Raises:
            NonFiniteLossError: before the weights are touched.
        """
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        losses = self._losses(data)
        self._check_finite(losses)
        self._last_losses = {name: loss.detach() for name, loss in losses.items()}
        total: Any = sum(losses.values())
        self.optimizer.zero_grad()
        (self.scaler.scaler.scale(total) if self.scaler else total).backward()
        self.after_backward()
        if self.clip_grad:
            self._clip()
        self._write_metrics(losses, data_time)
        if self.scaler:
            self.storage.put_scalar("loss_scale", self.scaler.scaler.get_scale())
            self.scaler.step(self.optimizer)
        else:
            self.optimizer.step()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def _losses(self, data: Any) -> dict[str, Tensor]:
        try:
            with self._autocast():
                losses = self.model(data)
        except FloatingPointError as error:  # Detectron2's RPN: boxes or scores are not finite
            last = [f"{name}={loss.item():.4g}" for name, loss in self._last_losses.items()]
            raise NonFiniteLossError(
                f"iteration {self.iter}: {error} Losses of the step before: "
                f"{', '.join(last) or 'none'}; the weights are those before this step; {_REMEDY}"
            ) from error
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _check_finite(self, losses: Mapping[str, Tensor]) -> None:
        values = {name: loss.detach() for name, loss in losses.items()}
        if not values:
            raise ConfigError("the model returned no losses: is it a model for training?")
        if bool(torch.stack([value.isfinite().all() for value in values.values()]).all()):
            return
        bad = [f"{name}={value.item()}" for name, value in values.items() if not value.isfinite()]
        raise NonFiniteLossError(
            f"iteration {self.iter}: {', '.join(bad)} of the losses {', '.join(values)}; the "
            f"weights are those before this step; {_REMEDY}"
        )

    def _clip(self) -> None:
        assert self.clip_grad is not None
        if self.scaler:
            self.scaler.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, **self.clip_grad).item()
        # with loss scaling an overflow is expected now and then: the scaler skips that step
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)
        elif not self.scaler:
            raise NonFiniteLossError(
                f"iteration {self.iter}: the norm of the gradients is {norm} although every loss "
                "is finite; the weights are those before this step"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return iteration, hooks, optimizer and loss scale."""
        state: dict[str, Any] = super().state_dict()
        if self.scaler:
            state["grad_scaler"] = self.scaler.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        super().load_state_dict(state_dict)
        if self.scaler and "grad_scaler" in state_dict:
            self.scaler.scaler.load_state_dict(state_dict["grad_scaler"])


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse float16 where there is no loss scaling.

    Raises:
        ConfigError: float16 on a device other than CUDA.
    """
    if dtype == torch.float16 and device.type != "cuda":
        raise ConfigError(
            f"train.precision=fp16 needs CUDA, the device is {device.type}; use bf16 or fp32"
        )
