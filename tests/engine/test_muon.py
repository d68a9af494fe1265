"""Muon in fp32 on the CPU, against torch's own and against the singular value decomposition."""

import copy

import pytest
import torch
from torch import nn

from densedet.engine.muon import Muon, orthogonalised

SHAPES = [(8, 8), (8, 8), (6, 12), (12, 6)]


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def train(optimizer, matrices, steps=4):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_it_is_torchs_up_to_the_rounding_of_bf16(nesterov, weight_decay):
    ours, theirs, start = parameters(), parameters(), parameters()
    options = {"lr": 0.05, "weight_decay": weight_decay, "nesterov": nesterov}
    train(Muon(ours, **options), ours)
    train(torch.optim.Muon(theirs, **options), theirs)
    for found, expected, before in zip(ours, theirs, start, strict=True):
        moved = (expected - before).abs().max()
        assert (found - expected).abs().max() <= 0.03 * moved


def test_the_update_has_singular_values_near_one():
    matrices = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(2))
    found = orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    aligned = torch.einsum("nij,nij->n", found, left @ right) / 5
    assert aligned.min() > 0.7
    tall = orthogonalised(matrices.mT, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(tall, found.mT)


def test_a_matrix_does_not_depend_on_the_others_of_its_shape():
    together, alone = parameters(), parameters()
    train(Muon(together, lr=0.1), together, steps=1)
    generator = torch.Generator().manual_seed(1)
    for one, expected in zip(alone, together, strict=True):
        one.grad = torch.randn(one.shape, generator=generator)
        Muon([one], lr=0.1).step()
        torch.testing.assert_close(one, expected)


def test_state_moves_to_torchs_and_back():
    matrices = parameters()
    optimizer = Muon(matrices, lr=0.1)
    train(optimizer, matrices)
    state = copy.deepcopy(optimizer.state_dict())
    torch.optim.Muon(parameters(), lr=0.1).load_state_dict(state)
    assert set(state["state"][0]) == {"momentum_buffer"}


def test_a_matrix_without_gradient_stays():
    matrices = parameters()
    matrices[0].grad = torch.ones(8, 8)
    before = [matrix.detach().clone() for matrix in matrices]
    Muon(matrices, lr=0.1).step()
    moved = [not torch.equal(m, b) for m, b in zip(matrices, before, strict=True)]
    assert moved == [True, False, False, False]
    with pytest.raises(ValueError, match="closure"):
        Muon(matrices).step(lambda: 0.0)
