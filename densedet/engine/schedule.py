"""Learning-rate multipliers in iterations, on fvcore's schedulers (which count in fractions)."""

import logging
from collections.abc import Sequence

from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CosineParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    ParamScheduler,
)

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
