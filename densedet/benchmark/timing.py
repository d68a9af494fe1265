"""Timing two implementations in turn, and the table of the result."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Action = Callable[[], Any]
SIDES = ("ours", "reference")


@dataclass(frozen=True)
class Timing:
    """Seconds of each repeat of one side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median in seconds."""
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, float]:
        """Median and quartiles in seconds, as they go into the JSON."""
        return {"median_s": self.median, **_quartiles(self.seconds, "_s")}


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_in_turn(
    sides: Mapping[str, Action],
    device: torch.device,
    repeats: int,
    warmup: int = 1,
    before: Mapping[str, Action] | None = None,
) -> dict[str, Timing]:
    """Time functions alternately (ABAB...), so that what else the machine does hits all alike.

    Args:
        sides: name -> a function to be timed.
        device: waited for before and after each call.
        repeats: timed calls of each side.
        warmup: calls of each side before them, not timed.
        before: name -> a function called before every call of that side, not timed.

    Returns:
        name -> its times; the i-th times of all sides belong together.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(warmup + repeats):
        for name, action in sides.items():
            if before is not None and name in before:
                before[name]()
            synchronise(device)
            start = time.perf_counter()
            action()
            synchronise(device)
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def compare(ours: Timing, reference: Timing) -> dict[str, Any]:
    """Both sides and their ratio, as they go into the JSON.

    The speed-up is the median over the turns of reference / ours: above 1, ours is faster.
    """
    pairs = zip(ours.seconds, reference.seconds, strict=True)
    ratios = [theirs / mine for mine, theirs in pairs]
    return {
        "ours": ours.summary(),
        "reference": reference.summary(),
        "speedup": statistics.median(ratios),
        "speedup_quartiles": list(_quartiles(ratios).values()),
    }


def row(what: str, values: Mapping[str, float], pattern: str, ratio: str = "") -> list[str]:
    """A line of the table: what, ours, reference, ratio."""
    return [what, *(pattern.format(values[name]) for name in SIDES), ratio]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns with spaces, the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first, *others = (
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def _quartiles(values: Sequence[float], suffix: str = "") -> dict[str, float]:
    lower = upper = values[0]
    if len(values) > 1:
        lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {f"lower_quartile{suffix}": lower, f"upper_quartile{suffix}": upper}
