"""The maximum of groups."""

import torch

from densedet.modeling.scores import max_over_groups


def test_maximum_of_groups_by_hand() -> None:
    scores = torch.tensor([[-1.0, -3.0, -2.0, -4.0], [1.0, 2.0, 3.0, 0.0]])
    groups = torch.tensor([0, 2, 2, 1])
    assert max_over_groups(scores, groups, 3).tolist() == [[-1, -4, -2], [1, 0, 3]]
    maps = torch.stack([scores, -scores], dim=2)[..., None].expand(-1, -1, -1, 5)
    found = max_over_groups(maps, groups, 3)
    assert found.shape == (2, 3, 2, 5)
    assert found[0, :, 1, 4].tolist() == [1, 4, 3]


def test_the_gradient_goes_to_the_best() -> None:
    scores = torch.tensor([[-1.0, -3.0, -2.0]], requires_grad=True)
    max_over_groups(scores, torch.tensor([0, 1, 1]), 2).sum().backward()
    assert scores.grad is not None and scores.grad.tolist() == [[1, 0, 1]]
