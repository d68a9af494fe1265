"""Learning rates in iterations: multipliers on fvcore's schedulers, and a decay to a floor."""

import logging
import math
from collections.abc import Sequence
from typing import Any

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from densedet.errors import ConfigError

logger = logging.getLogger(__name__)


def warmup_schedule(
    max_iter: int,
    warmup_iters: int = 250,
    warmup_factor: float = 0.001,
    decay: str = "constant",
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    final_factor: float = 0.0,
) -> ParamScheduler:
    """Return a multiplier of the learning rate: a linear warm-up, then ``decay``.

    At iteration ``i < warmup_iters`` it is ``f + (1 - f) * i / warmup_iters`` with
    ``f = warmup_factor`` (Goyal et al., arXiv 1706.02677, section 2.2). A training that is shorter
    than the warm-up is its beginning: the warm-up is cut, not compressed.

    Args:
        max_iter: Iterations of the training.
        decay: "constant"; "step": times ``gamma`` at every one of ``milestones`` (iterations; those
            not before ``max_iter`` never come); "cosine": half a cosine from 1 to ``final_factor``
            over the iterations after the warm-up (arXiv 1608.03983).

    Raises:
        ConfigError: an unknown decay, a milestone within the warm-up or out of order, ``max_iter <
            1``.
    """
    if max_iter < 1 or warmup_iters < 0:
        raise ConfigError(
            f"schedule: max_iter={max_iter}, warmup_iters={warmup_iters} out of range"
        )
    main = _decay(decay, max_iter, warmup_iters, list(milestones), gamma, final_factor)
    if warmup_iters == 0:
        return main
    if warmup_iters >= max_iter:
        reached = warmup_factor + (1 - warmup_factor) * max_iter / warmup_iters
        return LinearParamScheduler(warmup_factor, reached)
    return WarmupParamScheduler(
        main,
        warmup_factor=warmup_factor,
        warmup_length=warmup_iters / max_iter,
        rescale_interval=decay == "cosine",
    )


def _decay(
    decay: str, max_iter: int, warmup: int, milestones: list[int], gamma: float, final: float
) -> ParamScheduler:
    if decay == "constant":
        return _steps(max_iter, [], 1.0)
    if decay == "cosine":
        return CosineParamScheduler(1.0, final)
    if decay != "step":
        raise ConfigError(f"schedule: decay={decay!r} is none of constant, step, cosine")
    if milestones != sorted(set(milestones)) or (milestones and milestones[0] < warmup):
        raise ConfigError(
            f"schedule: milestones {milestones} must rise and lie after the warm-up of {warmup}"
        )
    reached = [m for m in milestones if m < max_iter]
    if len(reached) < len(milestones):
        logger.warning("milestones %s, max_iter %d: the late ones never come", milestones, max_iter)
    return _steps(max_iter, reached, gamma)


def _steps(max_iter: int, milestones: list[int], gamma: float) -> ParamScheduler:
    # also for a constant: fvcore's ConstantParamScheduler refuses the call after the last iteration
    return MultiStepParamScheduler(
        values=[gamma**k for k in range(len(milestones) + 1)],
        milestones=milestones,
        num_updates=max_iter,
    )


class ClipCosine(ParamScheduler):
    """The schedule of open_clip, which CLIPSelf (arXiv 2310.01403) uses.

    At iteration ``i`` it is ``(i + 1) / warmup_iters`` before ``warmup_iters``, then half a cosine
    from 1 to 0 over the iterations that remain.

    Raises:
        ConfigError: ``max_iter`` is not longer than the warm-up.
    """

    def __init__(self, max_iter: int, warmup_iters: int = 1000) -> None:
        if not 0 <= warmup_iters < max_iter:
            raise ConfigError(
                f"schedule: a warm-up of {warmup_iters} iterations does not fit into {max_iter}"
            )
        self.max_iter, self.warmup_iters = max_iter, warmup_iters

    def __call__(self, where: float) -> float:
        """The multiplier at the fraction ``where`` (0..1) of the training."""
        iteration = round(where * self.max_iter)
        if iteration < self.warmup_iters:
            return (iteration + 1) / self.warmup_iters
        done = (iteration - self.warmup_iters) / (self.max_iter - self.warmup_iters)
        return (1 + math.cos(math.pi * done)) / 2


class PolyFloor:
    """Polynomial decay to a rate that is the same for every group, after a linear warm-up.

    With the base rate ``b`` of a parameter group, iteration ``i`` has the rate
    ``(b - floor) (1 - i / max_iter)^power + floor``, before ``warmup_iters`` times
    ``1 - (1 - i / warmup_iters) (1 - warmup_factor)``. A group of base rate 0 rises to ``floor``.
    DenseCLIP (arXiv 2112.01518) trains its segmentation models so. As ``floor`` is absolute, this
    is no multiplier: ``lr_multiplier`` of a config may be either.

    Args:
        max_iter: Iterations of the training.
        power: Exponent of the decay.
        floor: Rate at the end.
        warmup_iters: Iterations of the warm-up; 0 has none.
        warmup_factor: Of the decaying rate, at iteration 0.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        max_iter: int,
        power: float = 0.9,
        floor: float = 1e-6,
        warmup_iters: int = 1500,
        warmup_factor: float = 1e-6,
    ) -> None:
        if max_iter < 1 or warmup_iters < 0 or power <= 0 or floor < 0:
            raise ConfigError(
                f"schedule: max_iter={max_iter}, warmup_iters={warmup_iters}, power={power} or "
                f"floor={floor} is out of range"
            )
        self.max_iter, self.power, self.floor = max_iter, power, floor
        self.warmup_iters, self.warmup_factor = warmup_iters, warmup_factor

    def rate(self, base_lr: float, iteration: int) -> float:
        """The learning rate of a group with ``base_lr`` in ``iteration``; ``floor`` at the end."""
        left = max(0.0, 1 - iteration / self.max_iter)
        rate = (base_lr - self.floor) * left**self.power + self.floor
        if iteration < self.warmup_iters:
            rate *= 1 - (1 - iteration / self.warmup_iters) * (1 - self.warmup_factor)
        return rate

    def bind(self, optimizer: Optimizer, last_iter: int = -1) -> LRScheduler:
        """The scheduler that sets the rates of ``optimizer``, those of the next iteration at once.

        Args:
            optimizer: Its groups have their base rate as ``initial_lr``, or else as ``lr``.
            last_iter: The last iteration that was done; -1 for none.
        """
        return _PolyFloorScheduler(optimizer, self, last_iter)


class _PolyFloorScheduler(LRScheduler):
    """Sets every group's rate to :meth:`PolyFloor.rate` of its own base rate."""

    def __init__(self, optimizer: Optimizer, schedule: PolyFloor, last_iter: int) -> None:
        self._schedule = schedule
        super().__init__(optimizer, last_epoch=last_iter)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """The rates of the iteration ``last_epoch``."""
        return [self._schedule.rate(float(base), self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The numbers alone: the schedule is the config's, and a checkpoint holds no objects."""
        return {"base_lrs": self.base_lrs, "last_epoch": self.last_epoch}
