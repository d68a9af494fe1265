"""Cross-entropy of a coarse map of logits against the labels of pixels."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Mean = Literal["valid", "all"]


def pixel_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_value: int = 255, mean: Mean = "valid"
) -> Tensor:
    """Cross-entropy of logits, resized bilinearly to the labels.

    Args:
        logits: [B, K, h, w].
        labels: int64 [B, H, W], 0 .. K - 1 or ``ignore_value``.
        ignore_value: pixels of this label cost nothing.
        mean: over the "valid" pixels, or over "all", ignored ones included.

    Returns:
        A scalar in fp32; 0 if no pixel is valid.
    """
    logits = F.interpolate(
        logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False
    )
    total = F.cross_entropy(logits, labels, ignore_index=ignore_value, reduction="sum")
    if mean == "all":
        return total / labels.numel()
    return total / (labels != ignore_value).sum().clamp(min=1)
