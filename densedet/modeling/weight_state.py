"""Whether the weights of a module are still those of a result that is kept."""

from typing import Any

from torch import nn


def weight_state(module: nn.Module) -> tuple[Any, ...]:
    """Changes with every assignment and change in place of a weight, loading included.

    A write through ``.data`` leaves no trace, nor do moves that end where they began (``_apply``).
    """
    return tuple(
        (id(p), p.device, p.dtype, 0 if p.is_inference() else p._version)
        for p in module.parameters()
    )
