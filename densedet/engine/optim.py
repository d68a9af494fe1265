"""Parameter groups of the optimizer."""

from collections.abc import Callable
from typing import Any

from detectron2.solver.build import get_default_optimizer_params, reduce_param_groups
from torch import nn

from densedet.errors import ConfigError


def get_parameters(
    model: nn.Module,
    *,
    base_lr: float | None = None,
    weight_decay_norm: float | None = None,
    weight_decay_bias: float | None = None,
    weight_decay_1d: float | None = None,
    lr_factor_func: Callable[[str], float] | None = None,
    overrides: dict[str, dict[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Return the parameters that require gradients, grouped by learning rate and weight decay.

    Detectron2's ``get_default_optimizer_params`` with one more rule.

    Args:
        model: Frozen parameters (``requires_grad=False``) are left out.
        base_lr: Needed with ``lr_factor_func``; otherwise the optimizer's.
        weight_decay_norm: Decay of normalisation layers; None: the optimizer's.
        weight_decay_bias: Decay of parameters called ``bias``; None: the optimizer's.
        weight_decay_1d: Decay of every parameter with fewer than two dimensions (biases, norms of
            any class, scalars), the usual rule for transformers and CLIP; it goes before the other
            two.
        lr_factor_func: From a parameter's name to a factor of ``base_lr``.
        overrides: From a parameter's last name to its options.

    Raises:
        ConfigError: every parameter is frozen.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=base_lr,
        weight_decay_norm=weight_decay_norm,
        weight_decay_bias=weight_decay_bias,
        lr_factor_func=lr_factor_func,
        overrides=dict(overrides or {}),
    )
    if not groups:
        raise ConfigError("every parameter of the model is frozen: there is nothing to train")
    if weight_decay_1d is None:
        return groups
    split = []
    for group in groups:
        for parameter in group["params"]:
            decay = {"weight_decay": weight_decay_1d} if parameter.ndim < 2 else {}
            split.append({**group, **decay, "params": [parameter]})
    return reduce_param_groups(split)
