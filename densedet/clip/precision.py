"""What is computed in fp32 whatever the rest is computed in."""

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off; the meta device, on which models are only measured, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
