"""Activation checkpointing: the same numbers from less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densedet.clip import build_visual
from densedet.clip.visual import ClipVisual

FAMILIES = ["eva", "vit", "resnet"]


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def loss(visual: ClipVisual, batch: Tensor) -> Tensor:
    """A number that depends on every kind of output."""
    last = visual.tap_names[-1]
    found = visual(batch, taps=[visual.tap_names[1], last])
    assert found.dense is not None and found.pooled is not None
    taps = sum((tap**2).mean() for tap in found.taps.values())
    return (found.dense[:, 0] ** 2).sum() + found.pooled.sin().sum() + taps


def gradients(visual: ClipVisual, batch: Tensor) -> dict[str, Tensor | None]:
    visual.zero_grad(set_to_none=True)
    loss(visual, batch).backward()
    return {name: parameter.grad for name, parameter in visual.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_results_and_gradients_are_the_same(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    batch = images(64, 96)
    before, expected = loss(visual, batch), gradients(visual, batch)
    visual.checkpointing = True
    assert torch.equal(loss(visual, batch), before)
    found = gradients(visual, batch)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        other = found[name]
        assert (gradient is None) == (other is None), name
        if gradient is not None and other is not None:
            assert torch.equal(gradient, other), name


@pytest.mark.parametrize("path", ["value", "tokens", "values"])
@pytest.mark.parametrize("family", ["eva", "vit"])
def test_every_dense_path(make_clip: Any, family: str, path: Any) -> None:
    visual = build_visual(make_clip(family))
    batch = images(32, 48)
    results = []
    for checkpointing in (False, True):
        visual.checkpointing = checkpointing
        pixels = batch.clone().requires_grad_()
        dense = visual.dense_map(pixels, path)
        (gradient,) = torch.autograd.grad(dense[:, 1].sum(), pixels)
        results.append((dense, gradient))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    batch = images(64, 64)
    found = []
    for checkpointing in (False, True):
        visual.checkpointing = checkpointing
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(visual, batch)
        visual.zero_grad(set_to_none=True)
        value.backward()
        found.append([p.grad for p in visual.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def saved_bytes(visual: ClipVisual, batch: Tensor) -> int:
    """Bytes that the graph keeps for the backward pass, the parameters themselves left out."""
    own = {p.untyped_storage().data_ptr() for p in visual.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dense = visual.dense_map(batch)
        total = sum(storages.values())
    dense.sum().backward()
    return total


@pytest.mark.parametrize(
    "family, vision",
    [("eva", {"depth": 12}), ("vit", {"depth": 12}), ("resnet", {"layers": [3, 4, 6, 3]})],
)
def test_keeps_at_least_forty_percent_less(
    make_clip: Any, family: str, vision: dict[str, Any]
) -> None:
    visual = build_visual(make_clip(family, vision))
    batch = images(96, 96)
    plain = saved_bytes(visual, batch)
    visual.checkpointing = True
    assert saved_bytes(visual, batch) < 0.6 * plain


def test_without_gradients_nothing_is_computed_twice(make_clip: Any) -> None:
    visual = build_visual(make_clip("vit"))
    visual.checkpointing = True
    calls = []
    block = visual.tower.transformer.resblocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        visual.dense_map(images(32, 32))
    assert len(calls) == 1
    visual.dense_map(images(32, 32)).sum().backward()
    assert len(calls) == 3


def test_dropout_in_training_mode_draws_the_same_numbers_again(make_clip: Any) -> None:
    visual = build_visual(make_clip("vit"))
    visual.tower.transformer.resblocks[1].ls_2 = nn.Dropout(0.5)
    visual.train()
    results = []
    for checkpointing in (False, True):
        visual.checkpointing = checkpointing
        torch.manual_seed(1)
        results.append(gradients(visual, images(32, 32)))
    name = "tower.transformer.resblocks.1.mlp.c_proj.weight"
    assert torch.equal(results[0][name], results[1][name])


def test_is_no_part_of_the_state_dict(make_clip: Any) -> None:
    visual = build_visual(make_clip("vit"))
    names = list(visual.state_dict())
    visual.checkpointing = True
    assert list(visual.state_dict()) == names and not any("checkpoint" in n for n in names)
