"""The precisions by name, and a warning where one is slow; importing this needs no torch."""

import logging
import platform
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PRECISION_NAMES = ("fp32", "bf16", "fp16")
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")  # of x86 and of Arm

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
    """Whether this CPU multiplies bf16 by itself; where torch cannot tell, it counts as so."""
    import torch

    capabilities: Any = getattr(torch.cpu, "get_capabilities", None)  # a late addition to torch
    if capabilities is not None:
        found = capabilities()
        return any(found.get(name, False) for name in _BF16_INSTRUCTIONS)
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@cache
def _warn_of_bf16() -> None:
    logger.warning(
        "precision bf16: this CPU has no instructions for it, which mostly makes it slower than "
        "fp32; use fp32, or a GPU"
    )
