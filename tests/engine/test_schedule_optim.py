"""Learning rates and parameter groups, against the formulas."""

import json
import math

import pytest
import torch
from detectron2.solver import LRMultiplier
from torch import nn

from densedet.engine.config import build, load_config
from densedet.engine.optim import MuonAdamW, get_parameters, muon_parameters
from densedet.engine.schedule import ClipCosine, warmup_schedule
from densedet.errors import ConfigError


def _rates(max_iter, **options):
    """The rates that an optimizer of base rate 2 has in each iteration."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = LRMultiplier(optimizer, warmup_schedule(max_iter, **options), max_iter)
    rates = []
    for _ in range(max_iter):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()  # also after the last iteration
    return rates


def _warm(i, n, f=0.001):
    return f + (1 - f) * i / n


def test_constant_after_warmup():
    expected = [2 * _warm(i, 5) if i < 5 else 2.0 for i in range(20)]
    assert _rates(20, warmup_iters=5) == pytest.approx(expected, rel=1e-9)
    assert _rates(3, warmup_iters=0) == [2.0] * 3


def test_steps_at_their_iterations():
    rates = _rates(48, warmup_iters=5, decay="step", milestones=[32, 44])
    expected = [
        2 * (_warm(i, 5) if i < 5 else 1 if i < 32 else 0.1 if i < 44 else 0.01) for i in range(48)
    ]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_cosine_over_the_iterations_after_warmup():
    rates = _rates(30, warmup_iters=10, decay="cosine", final_factor=0.1)
    expected = [2 * _warm(i, 10) for i in range(10)]
    expected += [2 * (0.1 + 0.45 * (1 + math.cos(math.pi * i / 20))) for i in range(20)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_a_short_training_is_the_beginning_of_a_long_one():
    for decay in ("constant", "cosine"):
        short = _rates(4, warmup_iters=10, decay=decay)
        assert short == pytest.approx([2 * _warm(i, 10) for i in range(4)], rel=1e-9)
    steps = _rates(10, warmup_iters=2, decay="step", milestones=[5, 100])
    assert steps[4:6] == pytest.approx([2.0, 0.2])


def test_wrong_schedules_are_refused():
    for options in (
        {"decay": "exponential"},
        {"decay": "step", "milestones": [40, 30]},
        {"decay": "step", "milestones": [3], "warmup_iters": 5},
        {"warmup_iters": -1},
    ):
        with pytest.raises(ConfigError, match="schedule"):
            warmup_schedule(50, **options)


def test_the_common_schedules_follow_max_iter(load_tiny):
    common = load_config("configs/common/schedule.py")
    assert set(common) == {"constant", "step", "cosine", "clip_cosine"}
    cfg = load_tiny("plain", "train.max_iter=8")
    schedule = build(cfg.lr_multiplier, "lr_multiplier")
    assert schedule(2 / 8) == pytest.approx(_warm(2, 4))
    assert schedule(4 / 8) == 1.0


@pytest.mark.golden
def test_clip_cosine_is_the_published_schedule(golden_dir):
    rows = json.loads((golden_dir / "lr_schedule.json").read_text(encoding="utf-8"))
    assert rows
    for row in rows:
        schedule = ClipCosine(row["total"], row["warmup"])
        rates = [row["base_lr"] * schedule(step / row["total"]) for step in row["step"]]
        assert rates == pytest.approx(row["lr"], rel=1e-6)


def test_clip_cosine_in_an_optimizer_ends_at_zero():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = LRMultiplier(optimizer, ClipCosine(6, 2), 6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    tail = [1 + math.cos(math.pi * i / 4) for i in range(4)]
    assert rates == pytest.approx([1.0, 2.0, *tail])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("total", "warmup"), [(10, 10), (10, -1)])
def test_clip_cosine_refuses_a_warmup_that_does_not_fit(total, warmup):
    with pytest.raises(ConfigError, match="does not fit"):
        ClipCosine(total, warmup)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.shared = self.linear


def _decays(**options):
    model = Model()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = get_parameters(model, **options)
    assert len(groups) == len({g.get("weight_decay") for g in groups})
    return {names[id(p)]: g.get("weight_decay") for g in groups for p in g["params"]}


def test_groups_leave_out_frozen_and_count_shared_once():
    assert _decays() == dict.fromkeys(
        ["linear.weight", "linear.bias", "norm.weight", "norm.bias", "scale"]
    )


def test_decay_of_norms_biases_and_vectors():
    assert _decays(weight_decay_norm=0.0, weight_decay_bias=0.2) == {
        "linear.weight": None,
        "linear.bias": 0.2,
        "norm.weight": 0.0,
        "norm.bias": 0.2,
        "scale": None,
    }
    assert _decays(weight_decay_1d=0.0) == {
        "linear.weight": None,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "scale": 0.0,
    }


def test_a_frozen_model_has_nothing_to_train():
    with pytest.raises(ConfigError, match="every parameter of the model is frozen"):
        get_parameters(Model().requires_grad_(False))


def test_the_common_optimizer(load_tiny):
    node = load_config("configs/common/optim.py").AdamW
    node.params.model = Model()
    optimizer = build(node, "optimizer")
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (1e-4, (0.9, 0.999), 0.1)


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(3, 4)
        self.resblocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))

    def forward(self, x):
        return self.resblocks(self.stem(x))


def _muon(model):
    return MuonAdamW(
        muon_parameters(model, "resblocks", weight_decay_1d=0.0), lr=0.1, weight_decay=0.2
    )


def _loss(model):
    return model(torch.arange(12.0).reshape(4, 3)).square().mean()


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    model, expected = Blocks(), Blocks()
    optimizer = _muon(model)
    matrices = [expected.resblocks[0].weight, expected.resblocks[2].weight]
    rest = [p for p in expected.parameters() if all(p is not m for m in matrices)]
    decayed = [{"params": [p], "weight_decay": 0.2 if p.ndim > 1 else 0.0} for p in rest]
    parts = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.2, momentum=0.95),
        torch.optim.AdamW(decayed, lr=0.1),
    ]
    for _ in range(3):
        _loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
        _loss(expected).backward()
        for part in parts:
            part.step()
            part.zero_grad()
    for found, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, other, rtol=0, atol=1e-7)


def test_a_schedule_reaches_both_parts_also_after_loading():
    model = Blocks()
    optimizer = _muon(model)
    _loss(model).backward()
    optimizer.step()
    again = _muon(model)
    again.load_state_dict(optimizer.state_dict())
    for group in again.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    _loss(model).backward()
    again.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    optimizer.step()
    assert not all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_muon_needs_matrices():
    with pytest.raises(ConfigError, match="no trainable matrix has 'blocks.9'"):
        muon_parameters(Blocks(), "blocks.9")
    with pytest.raises(ValueError, match="2 optimizers"):
        _muon(Blocks()).load_state_dict({"parts": []})
