"""The precisions by name, and a warning where one is slow; importing this needs no torch."""

import logging
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISION_NAMES = ("fp32", "bf16", "fp16")

logger = logging.getLogger(__name__)


def warn_if_slow(dtype: "torch.dtype", device: "torch.device") -> None:
    """Warn, once a process, of bf16 on a CPU that has no instructions for it.

    Args:
        dtype: what autocast computes in.
        device: what it computes on.
    """
    import torch

    if dtype == torch.bfloat16 and device.type == "cpu" and not has_bf16_instructions():
        _warn_of_bf16()


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bf16 by itself: AVX-512 BF16, AMX, or the BF16 of Arm."""
    import torch

    names = ("avx512_bf16", "amx_bf16", "arm_bf16")
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in names)


@cache
def _warn_of_bf16() -> None:
    logger.warning(
        "precision bf16: this CPU has no instructions for it and is slower than in fp32; use fp32"
    )
