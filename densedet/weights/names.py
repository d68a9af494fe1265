"""Names that programs put around a state dict: wrappers of modules, moving averages."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from densedet.errors import CheckpointError

_LOG = logging.getLogger(__name__)

# torch.compile and FSDP put these before the names of what they hold, the whole model or a part.
_INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.")
# Of DataParallel, DistributedDataParallel, AveragedModel; of Lightning's Fabric.
_PARALLEL = ("module.", "_forward_module.")
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
    """Names without those of torch.compile and FSDP, and of data parallelism where all have one."""
    plain = {str(name): value for name, value in state.items()}
    for part in _INSIDE:
        plain = {name.replace(part, ""): value for name, value in plain.items()}
    for prefix in _PARALLEL:
        plain = _stripped(plain, prefix)
    return plain


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


def find_mapping(content: Any, anchor: str, source: object) -> Any:
    """The one mapping in a checkpoint, at most 4 deep, that has a name ending in ``anchor``.

    Returns:
        That mapping; ``content`` itself where there is none.

    Raises:
        CheckpointError: there are several; the message has the line that saves one of them.
    """
    found = dict(_mappings_with(content, anchor, "", 4, set()))
    if len(found) > 1:
        first = next(iter(found))
        raise CheckpointError(
            f"{source}: holds several sets of weights, under {', '.join(found)}; save the one that "
            f"you want: torch.save(torch.load(FILE){first}, 'weights.pth')"
        )
    return next(iter(found.values()), content)


def _mappings_with(
    content: Any, anchor: str, place: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, Mapping) or id(content) in seen:
        return
    seen.add(id(content))  # a file may name one mapping any number of times
    if any(str(name).endswith(anchor) for name in content):
        yield place, content
    elif depth:
        for name, value in content.items():
            yield from _mappings_with(value, anchor, f"{place}[{name!r}]", depth - 1, seen)


def find_prefix(state: dict[str, Any], anchors: tuple[str, ...], source: object) -> dict[str, Any]:
    """Names without the one prefix under which there are all ``anchors``; others are left out.

    Args:
        state: names -> tensors; as it is, where there are the anchors or no such prefix.
        anchors: beginnings of names that the model has; the first is a whole name.
        source: what to call the weights in messages.

    Raises:
        CheckpointError: there are several such prefixes; the message has the line that saves one.
    """
    ends = [name.removesuffix(anchors[0]) for name in state if name.endswith(f".{anchors[0]}")]
    if anchors[0] in state:
        return state
    found = [end for end in ends if all(any(n.startswith(end + a) for n in state) for a in anchors)]
    if len(found) > 1:
        raise CheckpointError(
            f"{source}: holds several sets of weights, under {', '.join(found)}; save the one that "
            f"you want: torch.save({{k.removeprefix({found[0]!r}): v for k, v in state.items() "
            f"if k.startswith({found[0]!r})}}, 'weights.pth')"
        )
    if not found:
        return state
    others = [name for name in state if not name.startswith(found[0])]
    _LOG.log(
        logging.WARNING if others else logging.INFO,
        "%s: the weights under %r are read, %d others are left out",
        source, found[0], len(others),
    )  # fmt: skip
    return {n.removeprefix(found[0]): v for n, v in state.items() if n.startswith(found[0])}


def _stripped(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    names = [name for name in state if name != _COUNTER]
    if not names or not all(name.startswith(prefix) for name in names):
        return state
    return {name.removeprefix(prefix): state[name] for name in names}
