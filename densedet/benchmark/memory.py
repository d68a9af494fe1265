"""Peak memory of a distillation step, each case in a process of its own."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from densedet.benchmark.distill import our_side, plain_side
from densedet.benchmark.machine import in_child, peak_memory
from densedet.benchmark.pictures import write_pictures
from densedet.benchmark.timing import row
from densedet.benchmark.training import DistillJob

GIB = "{:.2f} GiB"
STEPS = 2  # the optimiser's state is there from the second on
_SIDES = {"ours": our_side, "reference": plain_side}


def measure_peak(job: DistillJob, name: str) -> int:
    """Bytes at the peak of two training steps of a side, measured in a fresh process.

    Of a CUDA device all tensors; of a CPU all resident memory of the process, with nothing
    subtracted (Python, the libraries, the weights, the gradients, the optimiser's state).

    Args:
        job: what is trained; its loader workers, which have memory of their own, are left out.
        name: "ours" or "reference".
    """
    return int(in_child(_peak_here, replace(job, workers=0), name))


def run_memory(job: DistillJob) -> dict[str, Any]:
    """Our step with and without activation checkpointing.

    Returns:
        {"without_checkpointing", "with_checkpointing": bytes; "reduction": percent; "model",
        "image_size", "batch"}.
    """
    plain = measure_peak(replace(job, checkpointing=False), "ours")
    saved = measure_peak(replace(job, checkpointing=True), "ours")
    return {
        "without_checkpointing": plain,
        "with_checkpointing": saved,
        "reduction": 100 * (1 - saved / plain),
        **{name: getattr(job, name) for name in ("model", "image_size", "batch")},
    }


def memory_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, with checkpointing, without it, reduction."""
    cases = {"ours": "with_checkpointing", "reference": "without_checkpointing"}
    peaks = {side: result[case] for side, case in cases.items()}
    return [peak_row(peaks, f"{result['reduction']:.1f} % less")]


def peak_row(peaks: dict[str, int], ratio: str = "") -> list[str]:
    """The line of the table about bytes."""
    return row("peak memory", {side: peak / 2**30 for side, peak in peaks.items()}, GIB, ratio)


def _peak_here(job: DistillJob, name: str) -> int:
    torch.set_num_threads(job.settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        side = _SIDES[name](job, write_pictures(Path(folder), job.batch))
        side.run(STEPS)
    return peak_memory(job.settings.torch_device)
