import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead
from torch import nn

from densedet.modeling.rpn import NormRPNHead


def test_registered_under_its_class_name():
    assert RPN_HEAD_REGISTRY.get("NormRPNHead") is NormRPNHead


@pytest.mark.parametrize("conv_dims", [[-1], [-1, -1], [64, 32]])
@pytest.mark.parametrize("norm", ["GN", "BN", "SyncBN"])
def test_a_norm_instead_of_a_bias_after_every_hidden_convolution(conv_dims, norm):
    head = NormRPNHead(norm=norm, in_channels=32, num_anchors=3, conv_dims=conv_dims)
    hidden = [head.conv] if len(conv_dims) == 1 else list(head.conv)
    kind = {"GN": nn.GroupNorm, "BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}[norm]
    assert len(hidden) == len(conv_dims)
    for convolution in hidden:
        assert convolution.bias is None
        assert isinstance(convolution.norm, kind)
        assert isinstance(convolution.activation, nn.ReLU)
    assert head.objectness_logits.bias is not None
    names = {n for n, _ in head.named_parameters() if n.startswith("conv")}
    assert len(names) == 3 * len(conv_dims)  # weight, norm.weight, norm.bias


def test_forward_by_hand():
    torch.manual_seed(0)
    head = NormRPNHead(norm="GN", in_channels=32, num_anchors=3, conv_dims=[-1, -1])
    maps = [torch.randn(2, 32, 8, 8), torch.randn(2, 32, 4, 4)]
    logits, deltas = head(maps)
    for level, x in enumerate(maps):
        for convolution in head.conv:
            x = F.conv2d(x, convolution.weight, padding=1)
            x = F.relu(F.group_norm(x, 32, convolution.norm.weight, convolution.norm.bias))
        torch.testing.assert_close(logits[level], head.objectness_logits(x))
        torch.testing.assert_close(deltas[level], head.anchor_deltas(x))
    assert logits[0].shape == (2, 3, 8, 8) and deltas[1].shape == (2, 12, 4, 4)


def test_every_parameter_is_trained():
    head = NormRPNHead(norm="BN", in_channels=32, num_anchors=1, conv_dims=[-1, -1])
    logits, deltas = head([torch.randn(2, 32, 8, 8)])
    (logits[0].square().mean() + deltas[0].square().mean()).backward()
    assert all(p.requires_grad and p.grad.abs().sum() > 0 for p in head.parameters())


def test_without_a_norm_it_is_the_standard_head():
    arguments = {"in_channels": 32, "num_anchors": 3, "conv_dims": [-1, -1]}
    torch.manual_seed(0)
    head = NormRPNHead(norm="", **arguments)
    torch.manual_seed(0)
    standard = StandardRPNHead(**arguments)
    assert set(head.state_dict()) == set(standard.state_dict())
    maps = [torch.randn(1, 32, 4, 4)]
    torch.testing.assert_close(head(maps), standard(maps))
