"""Counting multiply-adds while a model runs on the meta device, where nothing is computed."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn.jit_handles import conv_flop_count
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten


class FlopCounter(TorchDispatchMode):
    """Counts the operators inside the block, by part of the model.

    The convention is that of fvcore's ``FlopCountAnalysis``: a fused multiply-add is one FLOP;
    convolutions and matrix products count, and at a few FLOPs an element the norms, nearest and
    bilinear interpolation and adaptive pooling to more than one cell; other elementwise work does
    not. Unlike there, fused attention counts: on the meta device torch takes it apart into its two
    matrix products, whatever way the model calls it.

    >>> model, images = nn.Conv2d(3, 8, 1).to("meta"), torch.zeros(1, 3, 4, 4, device="meta")
    >>> with torch.no_grad(), FlopCounter() as counter:
    ...     _ = model(images)
    >>> counter.total
    384

    Attributes:
        flops: by part; what runs outside every part is at "".
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self._open = [""]

    @property
    def total(self) -> int:
        """The sum over the parts."""
        return self.flops.total()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside the block for this part, the innermost one that is open."""
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()

    @contextmanager
    def modules(self, parts: dict[str, list[nn.Module]]) -> Iterator[None]:
        """Count what runs inside calls of these modules for their part."""
        handles = []
        for name, modules in parts.items():
            for module in modules:
                handles += [
                    module.register_forward_pre_hook(lambda *_, name=name: self._open.append(name)),
                    module.register_forward_hook(self._leave, always_call=True),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, *_: Any) -> None:
        self._open.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func.overloadpacket)
        if count is not None:
            result = outputs[0] if isinstance(outputs, tuple) else outputs
            if not result.is_meta:
                raise ValueError(f"{func} runs on {result.device}: count on the meta device")
            self.flops[self._open[-1]] += count(args, result)
        return outputs


Count = Callable[[tuple[Any, ...], Tensor], int]


def _convolution(args: tuple[Any, ...], output: Tensor) -> int:
    images, weight, transposed = args[0], args[1], args[6]
    return int(conv_flop_count(images.shape, weight.shape, output.shape, transposed))


def _product(left: int) -> Count:
    """Of a matrix product whose left factor is the argument ``left``."""
    return lambda args, output: output.numel() * args[left].shape[-1]


def _norm(weight: int) -> Count:
    """Of a norm that computes its statistics; ``weight`` is the argument for them, or None."""
    return lambda args, output: output.numel() * (4 if args[weight] is None else 5)


def _batch_norm(args: tuple[Any, ...], output: Tensor) -> int:
    training = args[5]
    return _norm(1)(args, output) if training else output.numel() * (1 if args[1] is None else 2)


_COUNTS: dict[Any, Count] = {
    _ATEN.convolution: _convolution,
    _ATEN.mm: _product(0),
    _ATEN.bmm: _product(0),
    _ATEN.addmm: _product(1),
    _ATEN.baddbmm: _product(1),
    _ATEN.native_batch_norm: _batch_norm,
    _ATEN.native_layer_norm: _norm(2),
    _ATEN.native_group_norm: _norm(1),
    _ATEN.upsample_nearest2d: lambda args, output: output.numel(),
    _ATEN.upsample_bilinear2d: lambda args, output: 4 * output.numel(),
    _ATEN._adaptive_avg_pool2d: lambda args, output: args[0].numel(),
}
