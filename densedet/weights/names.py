"""Names that programs put around a state dict: wrappers of modules, moving averages."""

import logging
from collections.abc import Mapping
from typing import Any

from densedet.errors import CheckpointError

_LOG = logging.getLogger(__name__)

# torch.compile puts this before the names of what it compiles, the whole model or a part.
_COMPILED = "_orig_mod."
_PARALLEL = "module."  # of DataParallel, DistributedDataParallel, AveragedModel
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_model", "ema_state_dict", "ema")
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel


def unwrapped(content: Any, source: object) -> Any:
    """What a training checkpoint holds under ``state_dict``, ``model`` or the names of an average.

    The average is taken where it is all that there is; a warning says that it is left out where
    there are other weights too.
    """
    while isinstance(content, Mapping):
        plain, averages = (
            [name for name in names if isinstance(content.get(name), Mapping)]
            for names in (_WRAPPERS, _AVERAGES)
        )
        if plain and averages:
            _LOG.warning(
                "%s: the weights under %r are read, their moving average under %r is not; to use "
                "it, save it alone: torch.save(torch.load(FILE)[%r], 'average.pth')",
                source, plain[0], averages[0], averages[0],
            )  # fmt: skip
        if not plain and not averages:
            break
        content = content[(plain or averages)[0]]
    return content


def without_wrappers(state: Mapping[str, Any]) -> dict[str, Any]:
    """Names without those of torch.compile, and of data parallelism where all have one."""
    plain = {str(name).replace(_COMPILED, ""): value for name, value in state.items()}
    return _stripped(plain, _PARALLEL)


def without_prefixes(state: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Names as `without_wrappers` gives them, and without a prefix "model." or of an average.

    Only a prefix that all names share is taken away.

    Raises:
        CheckpointError: some names have the prefix of a moving average and others do not: there are
            two sets of weights.
    """
    averages = tuple(f"{name}." for name in _AVERAGES)
    before: dict[str, Any] = {}
    found = without_wrappers(state)
    while found != before and found:
        before = found
        for prefix in ("model.", *averages):
            found = without_wrappers(_stripped(found, prefix))
    for prefix in averages:
        if any(name.startswith(prefix) for name in found):
            raise CheckpointError(
                f"{source}: holds a moving average under {prefix!r} beside other weights; save the "
                f"one that you want: torch.save({{k.removeprefix({prefix!r}): v for k, v in "
                f"state.items() if k.startswith({prefix!r})}}, 'weights.pth')"
            )
    return found


def _stripped(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    names = [name for name in state if name != _COUNTER]
    if not names or not all(name.startswith(prefix) for name in names):
        return state
    return {name.removeprefix(prefix): state[name] for name in names}
