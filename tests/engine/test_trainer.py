"""The training step, on numbers computed by hand."""

import json
import math
import re

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from densedet.engine.train import train
from densedet.engine.trainer import (
    MAX_SKIPPED,
    NonFiniteLossError,
    Trainer,
    check_precision,
)
from densedet.errors import ConfigError, DensedetError

CPU = torch.device("cpu")


class Two(nn.Module):
    """Losses 3a and 4b: the gradient is (3, 4), of norm 5."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(()))
        self.b = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return {"loss_a": 3 * self.a * batch[0], "loss_b": 4 * self.b * batch[1]}


def _step(batch, **options):
    model = Two()
    trainer = Trainer(
        model, [batch], torch.optim.SGD(model.parameters(), lr=1.0), device=CPU, **options
    )
    with EventStorage() as trainer.storage:
        trainer.run_step()
        return model, trainer.storage.latest()


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (None, (-3.0, -4.0)),
        ({"max_norm": 1.0, "norm_type": 2.0}, (-0.6, -0.8)),
        ({"max_norm": 10.0}, (-3.0, -4.0)),
        ({"max_norm": 2.0, "norm_type": "inf"}, (-1.5, -2.0)),
    ],
)
def test_clipping_limits_the_global_norm(clip, expected):
    clip = clip and {k: float(v) for k, v in clip.items()}
    model, latest = _step([1.0, 1.0], clip_grad=clip)
    assert (model.a.item(), model.b.item()) == pytest.approx(expected, rel=1e-5)
    assert latest["grad_norm"][0] == pytest.approx(4.0 if "inf" in str(clip) else 5.0)


def test_a_loss_that_is_not_finite_stops_before_the_weights_move():
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = Trainer(model, [[1.0, float("nan")]], optimizer, device=CPU)
    trainer.iter = 17
    with pytest.raises(NonFiniteLossError, match=r"iteration 17: loss_b=nan of the losses loss_a"):
        trainer.run_step()
    assert model.a.item() == model.b.item() == 0
    assert model.a.grad is None


@pytest.mark.parametrize("clip", [None, {"max_norm": 1}])
def test_gradients_that_are_not_finite_stop_too(clip):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(()))

        def forward(self, batch):
            return {"loss_root": self.a.sqrt()}  # finite at 0, its slope is not

    model = Root()
    trainer = Trainer(
        model, [0], torch.optim.SGD(model.parameters(), 1.0), device=CPU, clip_grad=clip
    )
    with EventStorage() as trainer.storage, pytest.raises(NonFiniteLossError, match="norm of the"):
        trainer.run_step()
    assert model.a.item() == 0


def test_a_poisoned_training_says_when_and_which_and_does_not_evaluate(tmp_path, load_tiny):
    cfg = load_tiny("plain", "model.poison=5", "train.max_iter=6")  # in the last iteration
    with pytest.raises(NonFiniteLossError, match=r"iteration 5: loss_shrink=nan"):
        train(cfg)
    assert not (tmp_path / "out/results.json").exists()
    assert not (tmp_path / "out/model_final.pth").exists()
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_0000003.pth"


def test_a_diverging_rcnn_says_when_and_what_its_losses_were(load_tiny):
    more = ["optimizer.lr=1e30", "train.max_iter=9", "lr_multiplier.warmup_iters=0"]
    with pytest.raises(DensedetError) as caught:
        train(load_tiny("rcnn", *more))
    assert isinstance(caught.value, NonFiniteLossError)
    assert "diverged" in str(caught.value.__cause__)  # Detectron2's RPN raised it
    found = re.match(
        r"iteration [1-8]: .*Inf/NaN.* Training has diverged.* Losses of the step before: (.*?); ",
        str(caught.value),
    )
    losses = dict(part.split("=") for part in found[1].split(", "))
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert all(math.isfinite(float(value)) for value in losses.values())


def test_fp16_without_loss_scaling_is_refused():
    with pytest.raises(
        ConfigError, match="fp16 needs CUDA or the CPU, the device is mps; use bf16"
    ):
        check_precision(torch.device("mps"), torch.float16)


@pytest.mark.parametrize("name", ["plain", "rcnn"])
def test_bf16_trains_on_the_cpu(tmp_path, load_tiny, name):
    more = ["train.precision=bf16", "train.max_iter=30", "train.log_period=1"]
    train(load_tiny(name, *more, "train.checkpointer.period=30", "dataloader.train.shuffle=False"))
    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    losses = [json.loads(t)["total_loss"] for t in lines if "total_loss" in t]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    state = torch.load(tmp_path / "out/model_final.pth", weights_only=True)["model"]
    assert {v.dtype for v in state.values()} == {torch.float32}


SCALE = {"static": "{dynamic: false, init_scale: 1e30}", "dynamic": "{init_scale: 1e30}"}


@pytest.mark.parametrize("scale", SCALE)
def test_fp16_that_skips_every_step_says_so_and_ends(tmp_path, load_tiny, caplog, scale):
    """A static scale of 1e30 skipped all of 60 steps, and the training ended as if it had learnt;
    a dynamic one is not below 65504, the largest fp16, before the 84th step."""
    more = ["train.precision=fp16", "train.max_iter=60", "train.checkpointer.period=10"]
    cfg = load_tiny("plain", *more, f"train.grad_scaler={SCALE[scale]}")
    with pytest.raises(NonFiniteLossError) as caught:
        train(cfg)
    message = str(caught.value)
    assert message.startswith(f"iteration {MAX_SKIPPED - 1}: the last 20 steps were skipped")
    assert "loss scale 1e+30" in message or scale == "dynamic"
    assert "lower train.grad_scaler.init_scale" in message and "\n" not in message
    said = [r for r in caplog.records if "step skipped" in r.message]
    assert [r.levelname for r in said] == ["WARNING"]  # the others are told at the level INFO
    assert re.search(
        r"norm of the gradients is (nan|inf) at the loss scale 1e\+30", said[0].message
    )
    kept = torch.load(tmp_path / "out/model_0000009.pth", weights_only=True)
    assert kept["trainer"]["skipped"] == [10, 10]
    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    assert [json.loads(t)["skipped_steps"] for t in lines] == list(range(1, MAX_SKIPPED + 1))


def test_fp16_settles_and_learns_on_the_cpu_too(tmp_path, load_tiny, caplog):
    more = ["train.precision=fp16", "train.max_iter=30", "dataloader.train.shuffle=False"]
    caplog.set_level("INFO", logger="densedet")
    train(load_tiny("plain", *more, "train.grad_scaler={init_scale: 1e8}"))
    lines = (tmp_path / "out/metrics.json").read_text().splitlines()
    records = [json.loads(t) for t in lines if "total_loss" in t]
    skipped = records[-1]["skipped_steps"]
    said = [r for r in caplog.records if "step skipped" in r.message]
    assert 0 < skipped < MAX_SKIPPED and len(said) == skipped
    assert sum(r.levelname == "WARNING" for r in said) == 1
    losses = [r["total_loss"] for r in records]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(math.isfinite(r["grad_norm"]) for r in records if "grad_norm" in r)
    assert "grad_norm" in records[-1]


def test_autocast_reaches_the_model():
    seen = []

    class Probe(nn.Linear):
        def forward(self, batch):
            out = super().forward(torch.ones(1, 2))
            seen.append(out.dtype)
            return {"loss": out.float().sum()}

    for dtype in (torch.float32, torch.bfloat16):
        model = Probe(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        trainer = Trainer(model, [0], optimizer, device=CPU, dtype=dtype)
        with EventStorage() as trainer.storage:
            trainer.run_step()
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.cuda
@pytest.mark.parametrize("dynamic", [True, False])
def test_fp16_on_cuda_scales_clips_and_skips_overflow(dynamic):
    class Cuda(Two):
        def forward(self, batch):
            return {"loss": 3 * self.a + 4 * self.b + (self.a * batch).half().float()}

    model = Cuda().cuda()
    trainer = Trainer(
        model,
        [0.0, 3e38],
        torch.optim.SGD(model.parameters(), lr=1.0),
        device=torch.device("cuda", 0),
        dtype=torch.float16,
        clip_grad={"max_norm": 1.0},
        grad_scaler={"init_scale": 512.0, "dynamic": dynamic},
    )
    with EventStorage() as trainer.storage:
        trainer.run_step()
        assert (model.a.item(), model.b.item()) == pytest.approx((-0.6, -0.8), rel=1e-4)
        assert trainer.state_dict()["grad_scaler"]["scale"] == 512.0
        with torch.no_grad():
            model.a.zero_()
        trainer.run_step()  # the gradient overflows: the step is skipped
    assert (model.a.item(), model.b.item()) == pytest.approx((0.0, -0.8), rel=1e-4)
    assert trainer.scaler.scaler.get_scale() == (256.0 if dynamic else 512.0)
