"""P6 and P7, and the matcher that reassigns low-quality matches."""

import pytest
import torch
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.matcher import Matcher
from torch import Tensor

from densedet.modeling.retinanet import P6P7, ReassigningMatcher


def test_p7_without_relu_is_another() -> None:
    torch.manual_seed(0)
    stock = LastLevelP6P7(6, 5)
    feature = torch.randn(2, 6, 9, 13)
    expected = stock(feature)
    outputs = {}
    for relu in (True, False):
        ours = P6P7(6, 5, relu=relu)
        ours.load_state_dict(stock.state_dict())
        outputs[relu] = ours(feature)
        assert [tuple(x.shape) for x in outputs[relu]] == [(2, 5, 5, 7), (2, 5, 3, 4)]
    torch.testing.assert_close(outputs[True][0], expected[0])
    torch.testing.assert_close(outputs[True][1], expected[1])
    torch.testing.assert_close(outputs[False][0], expected[0])
    assert (outputs[False][1] - expected[1]).abs().max() > 0.1 * expected[1].abs().max()
    torch.testing.assert_close(outputs[False][1], stock.p7(expected[0]))


def test_p6p7_defaults() -> None:
    block = P6P7(8)
    assert block.in_feature == "res5" and block.num_levels == 2
    assert block.p7.out_channels == 256


def loop(quality: Tensor, low: float, high: float) -> tuple[list[int], list[int]]:
    """The rule, anchor by anchor and box by box."""
    boxes, anchors = quality.shape
    matches, labels = [], []
    for j in range(anchors):
        column = quality[:, j].tolist()
        match = column.index(max(column))
        label = 1 if max(column) >= high else 0 if max(column) < low else -1
        for i in range(boxes):  # the last box wins
            if quality[i, j] == max(quality[i].tolist()):
                match, label = i, 1
        matches.append(match)
        labels.append(label)
    return matches, labels


@pytest.mark.parametrize("seed", range(20))
def test_matcher_against_a_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # few values, so that there are ties between anchors and between boxes
    quality = torch.randint(0, 12, (5, 40), generator=generator) / 12
    matches, labels = ReassigningMatcher([0.4, 0.5], [0, -1, 1], True)(quality)
    assert (matches.tolist(), labels.tolist()) == loop(quality, 0.4, 0.5)
    assert matches.dtype == torch.int64 and labels.dtype == torch.int8


def test_matcher_differs_from_the_stock_one_in_the_box_alone() -> None:
    """Anchor 0 overlaps box 0 more; it is the best that box 1 has."""
    quality = torch.tensor([[0.6, 0.8], [0.3, 0.1]])
    stock = Matcher([0.4, 0.5], [0, -1, 1], True)(quality)
    ours = ReassigningMatcher([0.4, 0.5], [0, -1, 1], True)(quality)
    assert stock[0].tolist() == [0, 0] and ours[0].tolist() == [1, 0]
    assert stock[1].tolist() == ours[1].tolist() == [1, 1]


def test_matcher_without_low_quality_matches_is_the_stock_one() -> None:
    quality = torch.rand(4, 30, generator=torch.Generator().manual_seed(0))
    stock = Matcher([0.4, 0.5], [0, -1, 1])(quality)
    ours = ReassigningMatcher([0.4, 0.5], [0, -1, 1])(quality)
    assert torch.equal(stock[0], ours[0]) and torch.equal(stock[1], ours[1])


def test_matcher_without_boxes() -> None:
    matches, labels = ReassigningMatcher([0.4, 0.5], [0, -1, 1], True)(torch.zeros(0, 7))
    assert matches.tolist() == labels.tolist() == [0] * 7
