"""What is fp32 inside autocast."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densedet.clip import build_visual
from densedet.clip.precision import full_precision
from densedet.clip.tiny import build_tiny_clip


def test_full_precision_under_autocast() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision(a.device):
            assert (a @ a).dtype == torch.float32
    with full_precision(torch.device("meta")):
        assert (a @ a).dtype == torch.float32


def _blocks(tower: Any) -> list[nn.Module]:
    if hasattr(tower, "trunk"):
        return list(tower.trunk.blocks)
    if hasattr(tower, "transformer"):
        return list(tower.transformer.resblocks)
    stages = (tower.layer1, tower.layer2, tower.layer3, tower.layer4)
    return [bottleneck for stage in stages for bottleneck in stage]


@pytest.mark.parametrize("larger", [False, True])
@pytest.mark.parametrize("family", ["eva", "vit", "resnet", "tiny"])
def test_blocks_get_what_open_clip_gives_them(make_clip: Any, family: str, larger: bool) -> None:
    """Under bf16 autocast; for EVA the sum of the residuals is fp32, at other sizes too."""
    clip = build_tiny_clip().eval() if family == "tiny" else make_clip(family)
    visual = build_visual(clip).eval()
    dtypes: list[torch.dtype] = []
    outputs: list[torch.dtype] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dtypes.append(inputs[0].dtype)
        outputs.append(output.dtype)

    for block in _blocks(visual.tower):
        block.register_forward_hook(keep)
    images = torch.randn(2, 3, *visual.image_size)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        visual.tower(images)
        expected, expected_outputs = dtypes.copy(), outputs.copy()
        dtypes.clear()
        if larger:
            images = torch.randn(2, 3, *(2 * side for side in visual.image_size))
        taps = visual(images, taps=visual.tap_names).taps
    assert dtypes == expected and len(expected) >= 3
    assert (torch.float32 in expected) is (family == "eva")
    if family != "resnet":
        assert [tap.dtype for tap in taps.values()] == expected_outputs
