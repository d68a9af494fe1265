"""``towers``: a block of a ViT with our attention against the same block of open_clip."""

from dataclasses import dataclass
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from densedet.benchmark.defaults import TOWER_SIZES
from densedet.benchmark.machine import Settings, in_child, peak_memory, positive
from densedet.benchmark.timing import SIDES, compare, row, time_in_turn
from densedet.clip.vit import SelfAttention
from densedet.errors import ConfigError


@dataclass(frozen=True)
class TowerJob:
    """What is computed, without gradients.

    Attributes:
        settings: device, precision, repeats, ...
        sizes: sides of the images, pixels.
        patch: side of a patch, pixels.
        width: channels of the block.
        heads: of its attention.

    Raises:
        ConfigError: a number is below 1, or the heads do not divide the width.
    """

    settings: Settings
    sizes: tuple[int, ...] = TOWER_SIZES
    patch: int = 16
    width: int = 768
    heads: int = 12

    def __post_init__(self) -> None:
        positive(patch=self.patch, width=self.width, heads=self.heads)
        positive(**{"image-sizes": min(self.sizes)})
        if self.width % self.heads:
            raise ConfigError(f"--width {self.width} must be a multiple of --heads {self.heads}")

    def block(self, name: str) -> ResidualAttentionBlock:
        """Of one side, "ours" or "reference"; random weights, the same for both."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            block = ResidualAttentionBlock(self.width, self.heads).eval().requires_grad_(False)
        if name == "ours":
            block.attn.__class__ = SelfAttention
        return block.to(self.settings.torch_device)

    def tokens(self, size: int) -> Tensor:
        """``[1, N, C]``: CLS and the patches of an image."""
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randn(1, 1 + (size // self.patch) ** 2, self.width, generator=generator)
        return tokens.to(self.settings.torch_device)


def run_towers(job: TowerJob) -> dict[str, Any]:
    """Time the sides in turn and measure the memory of each in a process of its own.

    Returns:
        For each size (as text) "tokens", what `compare` says, "peak_mib" of both sides above what
        the process had before, and "largest_difference" of the outputs.
    """
    return {str(size): _run(job, size) for size in job.sizes}


def tower_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, open_clip's, ratio."""
    rows = []
    for size, found in result.items():
        seconds = {side: 1e3 * found[side]["median_s"] for side in SIDES}
        rows.append(row(f"block at {size}", seconds, "{:.1f} ms", f"{found['speedup']:.2f}"))
        rows.append(row(f"block at {size}, memory", found["peak_mib"], "{:.0f} MiB"))
    return rows


def _run(job: TowerJob, size: int) -> dict[str, Any]:
    settings, tokens = job.settings, job.tokens(size)
    blocks = {name: job.block(name) for name in SIDES}
    if settings.compile:
        for block in blocks.values():
            block.compile()

    def side(name: str) -> Tensor:
        with torch.no_grad(), settings.autocast():
            output: Tensor = blocks[name](tokens)
        return output

    actions = {"ours": lambda: side("ours"), "reference": lambda: side("reference")}
    times = time_in_turn(actions, settings.torch_device, settings.repeats, settings.warmup)
    return {
        "tokens": tokens.shape[1],
        **compare(times["ours"], times["reference"]),
        "peak_mib": {name: in_child(_peak_here, job, size, name) for name in SIDES},
        "largest_difference": float((side("ours") - side("reference")).abs().max()),
    }


def _peak_here(job: TowerJob, size: int, name: str) -> float:
    """MiB above what there was before, in this process."""
    torch.set_num_threads(job.settings.threads)
    device, block = job.settings.torch_device, job.block(name)
    tokens = job.tokens(size)
    with torch.no_grad(), job.settings.autocast():
        block(job.tokens(job.patch))  # what torch sets up once
        before = peak_memory(device)
        block(tokens)
    return (peak_memory(device) - before) / 2**20
