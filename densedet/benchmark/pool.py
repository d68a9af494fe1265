"""``pool``: pooling over boxes against torchvision's RoIAlign."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align

from densedet.benchmark.machine import Settings, positive
from densedet.benchmark.timing import SIDES, compare, row, time_in_turn
from densedet.regions import pool_boxes

Pool = Callable[[Tensor, Sequence[Tensor]], Tensor]
STRIDE = 16


@dataclass(frozen=True)
class PoolSizes:
    """The dense map ``[batch, channels, grid, grid]`` and ``split**2`` boxes an image.

    Attributes:
        channels_last: the map lies in memory as the transformer towers give it (tokens by
            channels), else as ``[B, D, h, w]``.
    """

    batch: int = 2
    channels: int = 512
    grid: int = 64
    split: int = 6
    channels_last: bool = False

    def __post_init__(self) -> None:
        positive(batch=self.batch, channels=self.channels, grid=self.grid, split=self.split)


def run_pool(settings: Settings, sizes: PoolSizes) -> dict[str, Any]:
    """Time both on the cells of a grid, and on as many random boxes.

    The cells are the finest split of CLIPSelf's grid patches (arXiv 2310.01403), the least
    favourable one to a matrix product; random boxes overlap, as proposals do.

    Returns:
        {"forward", "forward_backward": as of :func:`compare`, on cells; "random": the same two on
        random boxes; "largest_difference", "largest_gradient_difference": between the two sides,
        over both kinds of boxes; "boxes", "map", "channels_last"}.
    """
    device = settings.torch_device
    generator = torch.Generator().manual_seed(0)
    shape = (sizes.batch, sizes.channels, sizes.grid, sizes.grid)
    dense = torch.randn(shape, generator=generator).to(device, settings.dtype)
    if sizes.channels_last:
        dense = dense.contiguous(memory_format=torch.channels_last)
    side = float(STRIDE * sizes.grid)
    cells = [_cells(sizes.split, side).to(device)] * sizes.batch
    count = sizes.split**2
    random = [_random_boxes(count, side, generator).to(device) for _ in range(sizes.batch)]
    pools = _pools(settings)
    differences = [_differences(pools, dense, boxes, settings) for boxes in (cells, random)]
    return {
        "map": list(shape),
        "boxes": count * sizes.batch,
        "channels_last": sizes.channels_last,
        **_measure(pools, dense, cells, settings),
        "random": _measure(pools, dense, random, settings),
        "largest_difference": max(output for output, _ in differences),
        "largest_gradient_difference": max(gradient for _, gradient in differences),
    }


def pool_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    lines = {
        "grid cells, forward": result["forward"],
        "grid cells, forward + backward": result["forward_backward"],
        "random boxes, forward": result["random"]["forward"],
        "random boxes, forward + backward": result["random"]["forward_backward"],
    }
    return [
        row(
            name,
            {side: 1e3 * line[side]["median_s"] for side in SIDES},
            "{:.2f} ms",
            f"{line['speedup']:.2f}",
        )
        for name, line in lines.items()
    ]


def _pools(settings: Settings) -> dict[str, Pool]:
    def ours(dense: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        return pool_boxes(dense, boxes, STRIDE)

    def reference(dense: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        return roi_align(dense, list(boxes), 1, 1 / STRIDE, -1, True).flatten(1)

    pools: dict[str, Pool] = {"ours": ours, "reference": reference}
    if settings.compile:
        return {name: torch.compile(pool) for name, pool in pools.items()}
    return pools


def _measure(
    pools: dict[str, Pool], dense: Tensor, boxes: list[Tensor], settings: Settings
) -> dict[str, Any]:
    device = settings.torch_device
    upstream = torch.randn(sum(map(len, boxes)), dense.shape[1], device=device).to(dense.dtype)
    results = {}
    for what, backward in (("forward", False), ("forward_backward", True)):
        sides = {
            name: _Call(pool, dense, boxes, upstream, backward, settings)
            for name, pool in pools.items()
        }
        times = time_in_turn(sides, device, settings.repeats, settings.warmup)
        results[what] = compare(times["ours"], times["reference"])
    return results


@dataclass
class _Call:
    """One pooling of a map that something upstream computed, with or without its gradient."""

    pool: Pool
    dense: Tensor
    boxes: list[Tensor]
    upstream: Tensor
    backward: bool
    settings: Settings

    def __call__(self) -> tuple[Tensor, Tensor | None]:
        dense = self.dense.detach().requires_grad_(self.backward)
        with self.settings.autocast():  # in which torchvision computes in fp32
            pooled = self.pool(dense, self.boxes)
        if self.backward:
            (gradient,) = torch.autograd.grad(pooled, dense, self.upstream.to(pooled.dtype))
            return pooled.detach(), gradient
        return pooled, None


def _differences(
    pools: dict[str, Pool], dense: Tensor, boxes: list[Tensor], settings: Settings
) -> tuple[float, float]:
    """Largest absolute differences of the two sides: of the vectors, of the map's gradient."""
    upstream = torch.ones(sum(map(len, boxes)), dense.shape[1], device=dense.device).to(dense.dtype)
    ours, reference = (
        _Call(pools[name], dense, boxes, upstream, True, settings)()
        for name in ("ours", "reference")
    )
    first, second = (
        float((a.double() - b.double()).abs().max())
        for a, b in zip(ours, reference, strict=True)
        if a is not None and b is not None
    )
    return first, second


def _cells(split: int, side: float) -> Tensor:
    """``[split**2, 4]``: a picture of 4:3 in the upper part of the square, cut into cells."""
    columns = torch.linspace(0, side, split + 1)
    rows = columns * 0.75
    corners = [
        torch.stack([columns[j], rows[i], columns[j + 1], rows[i + 1]])
        for i in range(split)
        for j in range(split)
    ]
    return torch.stack(corners)


def _random_boxes(count: int, side: float, generator: torch.Generator) -> Tensor:
    points = torch.rand(count, 2, 2, generator=generator) * side
    return torch.cat([points.amin(1), points.amax(1)], dim=1)
