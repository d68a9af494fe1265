"""fp32 inside autocast."""

import torch

from densedet.clip.precision import full_precision


def test_full_precision_under_autocast() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
    with full_precision(torch.device("meta")):
        assert (a @ a).dtype == torch.float32
