"""Weights in models: loaded whole or not at all."""

from collections.abc import Mapping

from torch import Tensor, nn

from densedet.errors import CheckpointError
from densedet.weights.digests import StateDict


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load ``state`` if it fits ``module`` exactly; otherwise change nothing.

    Args:
        module: the receiver; values are copied into its parameters and buffers, keeping their
            dtype.
        state: names -> tensors, as for :func:`fit_strictly`.
        source: what to call the weights in the message (usually the file).

    Raises:
        CheckpointError: names the missing, the unexpected and the differently shaped keys.
    """
    # What is shared may have one of its names.
    module.load_state_dict(fit_strictly(module, state, source), strict=False)


def fit_strictly(module: nn.Module, state: Mapping[str, Tensor], source: object) -> StateDict:
    """Return ``state`` in the shapes of ``module``, which is not changed (and may be on "meta").

    Args:
        module: what the names and shapes are compared with.
        state: names -> tensors; an array of one element fits any other shape of one element. Of
            a parameter that the module holds under two names, one is enough.
        source: what to call the weights in the message (usually the file).

    Raises:
        CheckpointError: names the missing, the unexpected and the differently shaped keys.
    """
    own = module.state_dict(keep_vars=True)
    fitted = {name: _fitted(tensor, own.get(name)) for name, tensor in state.items()}
    given = {id(own[name]) for name in fitted if name in own}
    problems = {
        "missing": [n for n, value in own.items() if n not in fitted and id(value) not in given],
        "unexpected": [name for name in fitted if name not in own],
        "of another shape": [
            f"{name} {tuple(t.shape)} for {tuple(own[name].shape)}"
            for name, t in fitted.items()
            if name in own and t.shape != own[name].shape
        ],
        "of whole numbers where the model has fractions": [
            f"{name} {t.dtype}"
            for name, t in fitted.items()
            if name in own and own[name].is_floating_point() and not t.is_floating_point()
        ],
    }
    found = [f"{len(keys)} {kind}: {abbreviated(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{source}: does not fit {type(module).__name__}, nothing was loaded; "
            f"{'; '.join(found)}. Choose the model that the weights belong to"
        )
    return fitted


def _fitted(tensor: Tensor, own: Tensor | None) -> Tensor:
    """Let ``[]`` and ``[1]`` pass for each other (``logit_scale`` in different versions)."""
    single = own is not None and tensor.numel() == 1 == own.numel()
    return tensor.reshape(own.shape) if single and own is not None else tensor


def abbreviated(keys: list[str], limit: int = 4) -> str:
    """The first keys of a list, and "..." for the others."""
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")
