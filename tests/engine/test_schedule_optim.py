"""Learning rates and parameter groups, against the formulas."""

import json
import math
from io import BytesIO

import pytest
import torch
from detectron2.solver import LRMultiplier
from torch import nn

from densedet.engine.config import build, load_config
from densedet.engine.muon import Muon
from densedet.engine.optim import MuonAdamW, get_parameters, muon_parameters
from densedet.engine.schedule import ClipCosine, PolyFloor, warmup_schedule
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
    assert set(common) == {"constant", "step", "cosine", "clip_cosine", "poly"}
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


def _sgd(*base_rates):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in base_rates]
    return torch.optim.SGD(groups, lr=1.0)


def _poly(base, i, total, warm, power=0.9, floor=1e-6, ratio=1e-6):
    rate = (base - floor) * (1 - i / total) ** power + floor
    if i < warm:
        rate -= rate * (1 - i / warm) * (1 - ratio)
    return rate


def test_poly_of_every_group_with_its_own_base_rate():
    bases = (1e-4, 1e-5, 0.0)
    optimizer = _sgd(*bases)
    scheduler = PolyFloor(60, warmup_iters=20).bind(optimizer)
    for i in range(60):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([_poly(b, i, 60, 20) for b in bases], rel=1e-9)
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-6] * 3)
    optimizer.step()
    scheduler.step()  # a step too many stays at the floor
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-6] * 3)


def test_poly_numbers():
    schedule = PolyFloor(80000)
    assert schedule.rate(1e-4, 0) == pytest.approx(1e-10)
    assert schedule.rate(1e-4, 1499) == pytest.approx(9.8263e-5, rel=1e-5)
    assert schedule.rate(1e-4, 1500) == pytest.approx(9.9e-5 * 0.98125**0.9 + 1e-6)
    assert schedule.rate(1e-4, 40000) == pytest.approx(9.9e-5 * 0.5**0.9 + 1e-6)
    # a rate of 0 rises to the floor: at the middle 1e-6 (1 - 0.5^0.9)
    assert schedule.rate(0.0, 40000) == pytest.approx(4.6411e-7, rel=1e-4)
    assert schedule.rate(0.0, 80000) == schedule.rate(1e-4, 80000) == 1e-6


@pytest.mark.parametrize("kind", ["sgd", "muon"])
def test_poly_goes_on_from_a_state_dict(kind):
    bases = (0.3, 0.1, 0.0)

    def optimizer():
        if kind == "sgd":
            return _sgd(*bases)
        groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": r} for r in bases[1:]]
        matrix = {"params": [nn.Parameter(torch.zeros(2, 2))], "muon": True}
        return MuonAdamW([matrix, *groups], lr=1.0, muon_lr=bases[0])

    schedule = PolyFloor(10, floor=0.01, warmup_iters=4, warmup_factor=0.1)
    first = optimizer()
    scheduler = schedule.bind(first)
    for _ in range(3):
        first.step()
        scheduler.step()
    saved = torch.save(
        {"optimizer": first.state_dict(), "scheduler": scheduler.state_dict()}, buffer := BytesIO()
    )
    assert saved is None and buffer.seek(0) == 0
    state = torch.load(buffer, weights_only=True)
    for way in ("last_iter", "state_dict"):
        second = optimizer()
        second.load_state_dict(state["optimizer"])
        again = schedule.bind(second, last_iter=2)
        if way == "state_dict":
            again.load_state_dict(state["scheduler"])
        for i in range(3, 10):
            expected = [_poly(b, i, 10, 4, floor=0.01, ratio=0.1) for b in bases]
            assert [g["lr"] for g in second.param_groups] == pytest.approx(expected, rel=1e-9)
            second.step()
            again.step()


@pytest.mark.parametrize(
    "options",
    [{"max_iter": 0}, {"warmup_iters": -1}, {"power": 0.0}, {"floor": -1e-6}],
)
def test_poly_refuses_numbers_out_of_range(options):
    with pytest.raises(ConfigError, match="out of range"):
        PolyFloor(**{"max_iter": 10, **options})


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


def test_overrides_go_before_the_decay_of_vectors():
    options = {"overrides": {"scale": {"weight_decay": 0.3}}, "weight_decay_1d": 0.0}
    assert _decays(**options)["scale"] == 0.3
    assert _decays(**options)["norm.bias"] == 0.0
    assert _decays(**options, weight_decays={"scale": 0.4})["scale"] == 0.4


class Segmentor(nn.Module):
    """Names as those of DenseCLIP's models have them."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        names = (
            "backbone.fpn_lateral2",
            "backbone.bottom_up.trunk.visual.tower.conv1",
            "backbone.bottom_up.trunk.visual.tower.norm1",
            "backbone.bottom_up.guidance.text.encoder.norm1",
            "backbone.bottom_up.guidance.decoder.text_proj",
            "backbone.bottom_up.guidance.decoder.layers.0.norm1",
            "backbone.bottom_up.guidance.decoder.layers.0.mlp",
            "sem_seg_head.norm",
        )
        for name in names:
            parent = self
            for part in name.split(".")[:-1]:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.Module())
                parent = getattr(parent, part)
            parent.add_module(name.rpartition(".")[2], nn.LayerNorm(2))


GUIDED_RULES = {
    "lr_factors": {
        r"bottom_up": 1.0,  # shorter than the next two, so it decides only where they are not found
        r"bottom_up\.trunk\.": 0.1,
        r"guidance\.text\.encoder\.": 0.0,
    },
    "weight_decays": {r"guidance\.decoder\.layers\.\d+\.norm": 0.0},
}


def test_rules_on_full_names():
    model = Segmentor()
    names = {p: n for n, p in model.named_parameters()}
    groups = get_parameters(model, base_lr=1e-4, **GUIDED_RULES)
    optimizer = torch.optim.AdamW(groups, lr=1.0, weight_decay=1e-4)
    found = {
        names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]
    }
    guidance = "backbone.bottom_up.guidance."
    expected = {
        "scale": (1e-4, 1e-4),
        "backbone.fpn_lateral2": (1e-4, 1e-4),
        "backbone.bottom_up.trunk.visual.tower.conv1": (1e-5, 1e-4),
        "backbone.bottom_up.trunk.visual.tower.norm1": (1e-5, 1e-4),
        f"{guidance}text.encoder.norm1": (0.0, 1e-4),
        f"{guidance}decoder.text_proj": (1e-4, 1e-4),
        f"{guidance}decoder.layers.0.norm1": (1e-4, 0.0),
        f"{guidance}decoder.layers.0.mlp": (1e-4, 1e-4),
        "sem_seg_head.norm": (1e-4, 1e-4),
    }
    assert found == {
        name: pytest.approx(options)
        for prefix, options in expected.items()
        for name in ([prefix] if prefix == "scale" else [f"{prefix}.weight", f"{prefix}.bias"])
    }
    assert len(optimizer.param_groups) == 4


def test_a_rule_goes_before_the_decay_of_vectors_and_the_longest_before_the_others():
    rules = {r"norm": 0.3, r"decoder.*norm1\.w": 0.4, r"^scale$": 0.5}
    found = {}
    model = Segmentor()
    names = {p: n for n, p in model.named_parameters()}
    for order in (rules, dict(reversed(rules.items()))):
        groups = get_parameters(model, weight_decay_1d=0.0, weight_decays=order)
        found = {names[p]: g["weight_decay"] for g in groups for p in g["params"]}
        assert found["scale"] == 0.5 and found["sem_seg_head.norm.bias"] == 0.3
        norm1 = "backbone.bottom_up.guidance.decoder.layers.0.norm1."
        assert (found[f"{norm1}weight"], found[f"{norm1}bias"]) == (0.4, 0.3)
        assert found["backbone.fpn_lateral2.weight"] == 0.0


def test_rules_may_name_frozen_parameters():
    model = Segmentor()
    model.backbone.bottom_up.guidance.text.requires_grad_(False)
    groups = get_parameters(model, base_lr=1e-4, **GUIDED_RULES)
    assert sorted({g["lr"] for g in groups}) == pytest.approx([1e-5, 1e-4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_decays": {"trunck": 0.0}}, r"weight_decays: 'trunck' is found in none of the 17"),
        ({"lr_factors": {"trunck": 0.1}, "base_lr": 1.0}, "lr_factors: 'trunck' is found in none"),
        ({"weight_decays": {"(": 0.0}}, r"'\(' is no pattern"),
        ({"lr_factors": {"trunk": 0.1}}, "lr_factors needs base_lr"),
        (
            {"lr_factors": {"trunk": 0.1}, "base_lr": 1.0, "lr_factor_func": len},
            "without lr_factor_func",
        ),
    ],
)
def test_rules_that_cannot_be(options, message):
    with pytest.raises(ConfigError, match=message):
        get_parameters(Segmentor(), **options)


def test_rules_in_a_config():
    node = load_config("configs/common/optim.py").AdamW
    node.lr = 2e-3
    node.params.lr_factors = GUIDED_RULES["lr_factors"]
    node.params.weight_decays = GUIDED_RULES["weight_decays"]
    node.params.model = Segmentor()
    groups = build(node, "optimizer").param_groups
    found = {(group["lr"], group["weight_decay"]) for group in groups}
    assert found == {(0.0, 0.1), (2e-3 * 0.1, 0.1), (2e-3, 0.0), (2e-3, 0.1)}


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
        Muon(matrices, lr=0.02, weight_decay=0.2, momentum=0.95),
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
