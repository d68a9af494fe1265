"""``segment``: classes and probabilities of pixels, from small maps of logits.

Ours is `densedet.modeling.pixel_scores`. "full" makes the logits of all classes at all pixels, as
a segmentor of Detectron2 does, and reduces them; "einsum" is how classifiers of masks get there
(MaskFormer, arXiv 2107.06278, section 3.4): the product of the classes of Q queries with their
masks at all pixels.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.benchmark.defaults import CLASSES, HEIGHT, WIDTH
from densedet.benchmark.machine import Settings, in_child, peak_memory, positive
from densedet.benchmark.timing import Action, compare, time_in_turn
from densedet.modeling.pixel_scores import enlarged

Result = tuple[Tensor, Tensor]
QUERIES = 250
STRIDE = 16
_FULL_COPIES = (
    4  # of [K, H, W] that "full" has at its peak: logits twice, the softmax and its input
)


@dataclass(frozen=True)
class SegmentSizes:
    """What is segmented.

    Attributes:
        classes: K, one after the other.
        height, width: of the image, pixels.
        limit_gib: "full" and "einsum" are left out where they would take more.

    Raises:
        ConfigError: a size is not positive.
    """

    classes: tuple[int, ...] = CLASSES
    height: int = HEIGHT
    width: int = WIDTH
    limit_gib: float = 8.0

    def __post_init__(self) -> None:
        positive(height=self.height, width=self.width, **{f"K {k}": k for k in self.classes})

    def full_gib(self, classes: int) -> float:
        """What "full" takes at its peak."""
        return _FULL_COPIES * 4 * classes * self.height * self.width / 2**30

    def cells(self) -> tuple[int, int]:
        """Of the small map."""
        return -(-self.height // STRIDE), -(-self.width // STRIDE)


def run_segment(settings: Settings, sizes: SegmentSizes) -> dict[str, dict[str, Any]]:
    """Time the sides in turn and measure the memory of each in a process of its own.

    Returns:
        For each K (as text) "ratio_full" and "ratio_einsum" (time of that side / ours), "ours",
        "full" and "einsum" with their seconds, "peak_mib", "full_peak_mib" and "einsum_peak_mib"
        above what the process had before, "different_labels" (pixels whose class differs from
        "full") and "largest_difference" of a probability; None where a side was left out.
    """
    return {str(classes): _run(settings, sizes, classes) for classes in sizes.classes}


def segment_rows(result: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    rows = []
    for classes, found in result.items():
        for side in ("full", "einsum"):
            if found[side] is None:
                continue
            seconds = (found[one]["median_s"] for one in ("ours", side))
            rows.append(
                [
                    f"{classes} classes, {side}",
                    *(f"{value:.3g} s" for value in seconds),
                    f"{found[f'ratio_{side}']:.2f}",
                ]
            )
        peaks = [found["peak_mib"], found["full_peak_mib"]]
        rows.append([f"{classes} classes, memory", *(_mib(peak) for peak in peaks), ""])
    return rows


def _mib(value: float | None) -> str:
    return "left out" if value is None else f"{value:.0f} MiB"


def _run(settings: Settings, sizes: SegmentSizes, classes: int) -> dict[str, Any]:
    fits = sizes.full_gib(classes) <= sizes.limit_gib
    names = ("ours", "full", "einsum") if fits else ("ours",)
    sides: dict[str, Action] = {
        name: functools.partial(_SIDES[name], *_inputs(sizes, classes, name, settings.torch_device))
        for name in names
    }
    times = time_in_turn(sides, settings.torch_device, settings.repeats, settings.warmup)
    found: dict[str, Any] = {
        "ours": times["ours"].summary(),
        "peak_mib": in_child(_peak_here, settings, sizes, classes, "ours"),
        "different_labels": None,
        "largest_difference": None,
    }
    for side in ("full", "einsum"):
        ratio = compare(times["ours"], times[side]) if side in times else None
        found[side] = None if ratio is None else ratio["reference"]
        found[f"ratio_{side}"] = None if ratio is None else ratio["speedup"]
        found[f"{side}_peak_mib"] = (
            in_child(_peak_here, settings, sizes, classes, side) if side in times else None
        )
    if "full" in sides:
        (labels, chances), (other_labels, other_chances) = sides["ours"](), sides["full"]()
        found["different_labels"] = int((labels != other_labels).sum())
        found["largest_difference"] = float((chances - other_chances).abs().max())
    return found


def _inputs(
    sizes: SegmentSizes, classes: int, name: str, device: torch.device
) -> tuple[Tensor | tuple[int, int], ...]:
    generator = torch.Generator().manual_seed(0)
    height, width = sizes.cells()
    size = (sizes.height, sizes.width)
    if name == "einsum":
        queries = torch.randn(QUERIES, classes + 1, generator=generator)
        masks = torch.randn(QUERIES, 4 * height, 4 * width, generator=generator)
        return queries.to(device), masks.to(device), size
    logits = 3 * torch.randn(classes, height, width, generator=generator)
    return logits.to(device), size


def _ours(logits: Tensor, size: tuple[int, int]) -> Result:
    return enlarged(logits, STRIDE, size).best()


def _full(logits: Tensor, size: tuple[int, int]) -> Result:
    large = F.interpolate(logits[None], scale_factor=STRIDE, mode="bilinear", align_corners=False)
    part = large[..., : size[0], : size[1]]
    scores = F.interpolate(part, size, mode="bilinear", align_corners=False)[0]
    return scores.argmax(dim=0), scores.softmax(dim=0).amax(dim=0)


def _einsum(queries: Tensor, masks: Tensor, size: tuple[int, int]) -> Result:
    large = F.interpolate(masks[None], size, mode="bilinear", align_corners=False)[0]
    chances = queries.softmax(dim=-1)[..., :-1]
    best = torch.einsum("qc,qhw->chw", chances, large.sigmoid()).max(dim=0)
    return best.indices, best.values


_SIDES: dict[str, Callable[..., Result]] = {"ours": _ours, "full": _full, "einsum": _einsum}


def _peak_here(settings: Settings, sizes: SegmentSizes, classes: int, name: str) -> float:
    """MiB above what there was before, in this process."""
    torch.set_num_threads(settings.threads)
    device = settings.torch_device
    _SIDES[name](*_inputs(SegmentSizes((2,), 64, 64), 2, name, device))  # what torch sets up once
    inputs = _inputs(sizes, classes, name, device)
    before = peak_memory(device)
    _SIDES[name](*inputs)
    return (peak_memory(device) - before) / 2**20
