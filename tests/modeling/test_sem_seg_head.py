"""The head of Semantic FPN: dropout, and means of the loss."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling.sem_seg_head import SegmentationHead

SHAPES = {f"p{i}": ShapeSpec(channels=6, stride=2**i) for i in (2, 3, 4, 5)}


def make_head(**kwargs: Any) -> SegmentationHead:
    torch.manual_seed(0)
    settings = dict(input_shape=SHAPES, num_classes=4, conv_dims=8, common_stride=4, norm="BN")
    return SegmentationHead(**{**settings, **kwargs})


def levels(height: int = 64, width: int = 96) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(2, 6, height // s.stride, width // s.stride, generator=generator)
        for name, s in SHAPES.items()
    }


def labels(height: int = 64, width: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    found = torch.randint(0, 4, (2, height, width), generator=generator)
    found[:, : height // 2, : width // 3] = 255
    found[0, 5] = 255
    return found


def test_names_and_logits_are_those_of_detectron2() -> None:
    head = make_head().eval()
    stock = SemSegFPNHead(
        SHAPES, num_classes=4, conv_dims=8, common_stride=4, norm="BN", ignore_value=255
    ).eval()
    stock.load_state_dict(head.state_dict())
    logits, losses = head(levels())
    assert logits.shape == (2, 4, 64, 96) and losses == {}
    torch.testing.assert_close(logits, stock(levels())[0])
    head.train(), stock.train()
    head.dropout.p = 0.0
    ours, theirs = (h(levels(), labels())[1]["loss_sem_seg"] for h in (head, stock))
    assert torch.allclose(ours, theirs)


def brute_force(logits: Tensor, targets: Tensor, mean: str) -> float:
    """Pixel by pixel."""
    logits = F.interpolate(logits, targets.shape[-2:], mode="bilinear", align_corners=False)
    total, valid = 0.0, 0
    for b, y, x in (targets != 255).nonzero().tolist():
        vector = logits[b, :, y, x].double()
        total += float(vector.logsumexp(0) - vector[targets[b, y, x]])
        valid += 1
    return total / (valid if mean == "valid" else targets.numel())


@pytest.mark.parametrize("mean", ["valid", "all"])
def test_cross_entropy_against_a_loop(mean: Any) -> None:
    head = make_head(mean=mean, loss_weight=0.5)
    logits = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(3))
    targets = labels(15, 22)  # no multiple of the stride
    loss = head.losses(logits, targets)["loss_sem_seg"]
    assert float(loss) == pytest.approx(0.5 * brute_force(logits, targets, mean), rel=1e-5)


@pytest.mark.parametrize("mean", ["valid", "all"])
def test_no_valid_pixel(mean: Any) -> None:
    head = make_head(mean=mean).train()
    loss = head(levels(), torch.full((2, 64, 96), 255))[1]["loss_sem_seg"]
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_dropout_zeroes_channels_in_training_alone() -> None:
    head = make_head(dropout=0.5)
    seen: list[Tensor] = []
    head.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    head.train()(levels(), labels())
    head.eval()(levels())
    dead = [~x.flatten(2).any(dim=2) for x in seen]
    assert 0 < dead[0].sum() < dead[0].numel()
    assert not dead[1].any()


def test_an_unknown_mean_is_refused() -> None:
    with pytest.raises(ConfigError, match="valid, all"):
        make_head(mean="median")
