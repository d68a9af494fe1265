"""The training step: mixed precision on any device, clipped gradients, finite losses."""

import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densedet.engine.logs import is_full
from densedet.engine.precision import warn_if_slow
from densedet.engine.ranks import is_lost
from densedet.errors import ConfigError, DensedetError

logger = logging.getLogger(__name__)

MAX_SKIPPED = 20  # steps in a row without an update, after which a training with fp16 ends
_REMEDY = "a lower learning rate, a longer warm-up or train.clip_grad may help"


class NonFiniteLossError(DensedetError, FloatingPointError):
    """A prediction, a loss or the gradient norm became infinite or NaN.

    The weights are those before the step.
    """


class LossScaler:
    """Loss scaling for fp16 (Micikevicius et al., arXiv 1710.03740, section 3.2).

    Args:
        device: "cuda" or "cpu".
        dynamic: Let the scale grow and shrink; False keeps ``init_scale`` as it is.
        options: Other arguments of ``torch.amp.GradScaler``, e.g. ``init_scale``.
    """

    def __init__(self, device: str, dynamic: bool = True, **options: Any) -> None:
        self.dynamic = dynamic
        try:
            self.scaler = torch.amp.GradScaler(device, **options)
        except (TypeError, AssertionError) as error:
            raise ConfigError(f"train.grad_scaler: {error}") from error
        self.initial = self.scaler.get_scale()
        if self.initial <= 0:
            raise ConfigError(f"train.grad_scaler.init_scale={self.initial:g}: give a number > 0")

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """Step ``optimizer`` unless a gradient overflowed, then adapt the scale.

        Returns:
            Whether the weights were updated.
        """
        self.scaler.step(optimizer)
        # also right for fused optimizers, whose step is called in any case
        overflows = self.scaler._found_inf_per_device(optimizer).values()
        updated = not any(bool(found.item()) for found in overflows)
        if self.dynamic:
            self.scaler.update()
        else:
            self.scaler.update(self.initial)
        return updated


class Trainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` with autocast, global-norm clipping and finite losses.

    Args:
        model: Takes a batch, returns a dict of scalar losses (or one scalar).
        data_loader: Yields batches, forever.
        optimizer: Steps the parameters of ``model`` that are not frozen.
        device: Where the model is.
        dtype: float32 (no autocast), bfloat16 or float16 (CUDA or CPU, with loss scaling).
        clip_grad: ``max_norm`` and ``norm_type`` of ``torch.nn.utils.clip_grad_norm_``, over all
            parameters of the optimizer together; None does not clip.
        grad_scaler: Arguments of :class:`LossScaler`, for float16.

    The event storage has the norm of the gradients before clipping as ``grad_norm``, where it is
    finite, and with float16 ``loss_scale`` and ``skipped_steps``: how many steps so far left the
    weights as they were, because a gradient overflowed. Each of them is logged.

    Raises:
        ConfigError: float16 on a device that has no loss scaling.
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
        half = dtype == torch.float16
        self.scaler = LossScaler(device.type, **(grad_scaler or {})) if half else None
        self.skipped_steps = self.skipped_in_a_row = 0
        self._last_losses: dict[str, Tensor] = {}
        self._numbers_at_start = _plain_numbers(model)
        self._gathered: tuple[int, list[dict[str, float]]] | None = None

    def train(self, start_iter: int, max_iter: int) -> None:
        """Train; of Detectron2's tracebacks only those of defects are logged.

        Raises:
            DensedetError: bad input or a loss that is not finite; the caller says so.
        """
        log = logging.getLogger("detectron2.engine.train_loop")
        log.addFilter(_is_defect)
        self._around = sys.exc_info()[1]  # what the caller may be handling
        try:
            super().train(start_iter, max_iter)
        finally:
            log.removeFilter(_is_defect)

    def after_train(self) -> None:
        """End the hooks; what fails in the wake of an error does not hide it."""
        error = sys.exc_info()[1]  # Detectron2 calls this in `finally`
        try:
            super().after_train()
        except Exception as another:
            if error is None or error is self._around:
                raise
            logger.debug("ending the hooks failed too: %s: %s", type(another).__name__, another)

    def run_step(self) -> None:
        """Run one iteration.

        Raises:
            NonFiniteLossError: before the weights are touched; with float16 a gradient that is not
                finite only skips the step, unless the ``MAX_SKIPPED`` last ones were skipped too.
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
        norm = self._gradient_norm()
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)
        self._write_metrics(losses, data_time)
        if self.scaler:
            self._scaled_step(self.scaler, norm)
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

    def _gradient_norm(self) -> float:
        """Clip the gradients, if that is asked for; return the norm that they had."""
        if self.scaler:
            self.scaler.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        clip = self.clip_grad or {"max_norm": math.inf}
        norm: float = torch.nn.utils.clip_grad_norm_(parameters, **clip).item()
        if not (math.isfinite(norm) or self.scaler):
            raise NonFiniteLossError(
                f"iteration {self.iter}: the norm of the gradients is {norm} although every loss "
                "is finite; the weights are those before this step"
            )
        return norm

    def _scaled_step(self, scaler: LossScaler, norm: float) -> None:
        scale = scaler.scaler.get_scale()
        self.storage.put_scalar("loss_scale", scale)
        updated = scaler.step(self.optimizer)
        self.skipped_steps += not updated
        self.skipped_in_a_row = 0 if updated else self.skipped_in_a_row + 1
        self.storage.put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)
        if not updated:
            self._tell_skipped(norm, scale, scaler.dynamic)

    def _tell_skipped(self, norm: float, scale: float, dynamic: bool) -> None:
        remedy = "lower train.grad_scaler.init_scale, let it be dynamic, or use bf16"
        logger.log(
            logging.WARNING if self.skipped_steps == 1 else logging.INFO,
            "iteration %d: step skipped, the norm of the gradients is %s at the loss scale %g; "
            "skipped so far: %d; in a row: %d (%s)",
            self.iter,
            norm,
            scale,
            self.skipped_steps,
            self.skipped_in_a_row,
            "a dynamic scale shrinks now" if dynamic else f"the scale stays: {remedy}",
        )
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise NonFiniteLossError(
                f"iteration {self.iter}: the last {MAX_SKIPPED} steps were skipped, since gradients"
                f" overflowed in fp16 (norm {norm}, loss scale {scale:g}); the weights are those of"
                f" {MAX_SKIPPED} iterations before; {remedy}"
            )

    def gather_numbers(self) -> None:
        """Let :meth:`state_dict` hold ``numbers`` of all processes, all of which are to call this.

        It does so until the next step.
        """
        self._gathered = self.iter, comm.gather(self._changed_numbers())

    def _changed_numbers(self) -> dict[str, float]:
        before = self._numbers_at_start
        numbers = _plain_numbers(self.model)
        return {name: value for name, value in numbers.items() if before.get(name) != value}

    def state_dict(self) -> dict[str, Any]:
        """Return iteration, hooks, optimizer, loss scale and what else a step changes.

        That is, ``numbers``: for each process the numbers which are mere attributes of a module and
        differ from those of the model as it was built, such as the moving average that Detectron2's
        RetinaNet divides its losses by.
        """
        state: dict[str, Any] = super().state_dict()
        if self.scaler:
            state["grad_scaler"] = self.scaler.scaler.state_dict()
            state["skipped"] = [self.skipped_steps, self.skipped_in_a_row]
        iteration, gathered = self._gathered or (-1, [])
        state["numbers"] = gathered if iteration == self.iter else [self._changed_numbers()]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave.

        Raises:
            KeyError: the model has no module of a name.
        """
        super().load_state_dict(state_dict)
        if self.scaler and "grad_scaler" in state_dict:
            self.scaler.scaler.load_state_dict(state_dict["grad_scaler"])
            self.skipped_steps, self.skipped_in_a_row = state_dict.get("skipped", (0, 0))
        if state_dict.get("numbers"):
            numbers = state_dict["numbers"]
            _set_plain_numbers(self.model, numbers[comm.get_rank() % len(numbers)])


def _is_defect(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    explained = isinstance(error, DensedetError) or is_full(error)
    return error is None or not (explained or is_lost(error))


def _plain_numbers(model: nn.Module) -> dict[str, float]:
    """The numbers, no booleans, that are attributes of a model's modules, by their paths."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, module in _bare(model).named_modules()
        for key, value in vars(module).items()
        if type(value) in (int, float)
    }


def _set_plain_numbers(model: nn.Module, numbers: Mapping[str, float]) -> None:
    modules = dict(_bare(model).named_modules())
    for path, value in numbers.items():
        name, _, key = path.rpartition(".")
        setattr(modules[name], key, value)


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def check_precision(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse float16 where there is no loss scaling; warn of bfloat16 where it is slow.

    Raises:
        ConfigError: float16 on a device other than CUDA and the CPU.
    """
    if dtype == torch.float16 and device.type not in ("cuda", "cpu"):
        raise ConfigError(
            f"train.precision=fp16 needs CUDA or the CPU, the device is {device.type}; use bf16 or "
            "fp32"
        )
    warn_if_slow(dtype, device)
