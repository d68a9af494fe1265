"""The options of ``cfg.train``."""

from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.engine import HookBase
from omegaconf import DictConfig

from densedet.engine.config import load_config
from densedet.engine.options import TrainOptions, train_options
from densedet.errors import ConfigError


def changed(change):
    """The options of the common config with other values."""
    cfg = load_config("configs/common/train.py")
    for key, value in change.items():
        cfg.train[key] = value
    return train_options(cfg)


def test_train_options_equal_the_keys_of_the_common_config():
    cfg = load_config("configs/common/train.py")
    assert list(cfg.train) == [name for name in TrainOptions.__dataclass_fields__]
    assert train_options(cfg).clip_grad is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_itr": 3}, r"train.max_itr is unknown; did you mean max_iter\?"),
        ({"output_dir": 5}, "train.output_dir=5: give a folder"),
        ({"output_dir": ""}, "train.output_dir='': give a folder"),
        ({"init_checkpoint": 5}, "train.init_checkpoint=5: give a file, or null"),
        ({"max_iter": 0}, "train.max_iter=0: give an integer >= 1"),
        ({"max_iter": True}, "train.max_iter=True: give an integer >= 1"),
        ({"precision": "fp8"}, "train.precision='fp8': choose fp32, bf16, fp16"),
        ({"precision": ["fp32"]}, r"train.precision=\['fp32'\]: choose fp32, bf16, fp16"),
        ({"grad_scaler": 5}, "train.grad_scaler=5: give a dict of arguments, or null"),
        ({"ddp": None}, "train.ddp=None: give a dict of arguments"),
        ({"sync_batch_norm": 1}, "train.sync_batch_norm=1: give true or false"),
        ({"seed": -1}, "train.seed=-1: give an integer >= 0"),
        ({"device": 5}, "train.device=5: choose auto, cpu, cuda, cuda:N or mps"),
        ({"num_threads": 0}, "train.num_threads=0: give an integer >= 1, or null"),
        ({"num_threads": "two"}, "train.num_threads='two': give an integer >= 1, or null"),
        ({"hooks": None}, "train.hooks=None: give a list of "),
        ({"hooks": "all"}, "train.hooks='all': give a list of "),
        ({"hooks": "${nothing}"}, "train: .*nothing"),
        ({"clip_grad": 5}, "train.clip_grad=5: give a dict like {max_norm: 1.0, .*}, or null"),
        ({"clip_grad": {}}, "train.clip_grad.max_norm=None: give a number > 0"),
        ({"clip_grad": {"max_norm": 0}}, "train.clip_grad.max_norm=0: give a number > 0"),
        ({"clip_grad": {"max_norm": "x"}}, "train.clip_grad.max_norm='x': give a number > 0"),
        (
            {"clip_grad": {"max_norm": 1.0, "foo": 2}},
            "train.clip_grad.foo is unknown; there is max_norm, norm_type, ",
        ),
        (
            {"clip_grad": {"max_norm": 1.0, "norm_type": "two"}},
            "train.clip_grad.norm_type='two': give a number or inf",
        ),
        ({"timeout": 5}, "train.timeout=5: give a dict like {steps: 600, evaluation: 1800}"),
        ({"timeout": {"step": 5}}, "train.timeout.step is unknown; there is steps, evaluation"),
        ({"timeout": {"steps": 0}}, "train.timeout.steps=0: give seconds > 0"),
        ({"checkpointer": 5}, "train.checkpointer=5: give a dict like {period: 5000, "),
        ({"checkpointer": None}, "train.checkpointer=None: give a dict like {period: 5000, "),
        ({"checkpointer": {}}, "train.checkpointer.period=None: give a number >= 1"),
        ({"checkpointer": {"period": "abc"}}, "train.checkpointer.period='abc': give a number >="),
        (
            {"checkpointer": {"period": 1, "keep": 2}},
            "train.checkpointer.keep is unknown; there is period, max_to_keep, ",
        ),
        (
            {"checkpointer": {"period": 1, "max_to_keep": 0}},
            "train.checkpointer.max_to_keep=0: give an integer >= 1, or null",
        ),
    ],
)
def test_train_options_are_checked(change, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        changed(change)


@pytest.mark.parametrize(
    "change",
    [
        {"output_dir": Path("out")},
        {"init_checkpoint": None},
        {"grad_scaler": None},
        {"grad_scaler": {"init_scale": 512.0, "dynamic": False}},
        {"ddp": {}},
        {"num_threads": 4},
        {"hooks": [L(HookBase)()]},
        {"clip_grad": {"max_norm": 1}},
        {"clip_grad": {"max_norm": float("inf"), "norm_type": "inf"}},
        {"clip_grad": {"max_norm": 0.1, "norm_type": 2, "error_if_nonfinite": True}},
        {"clip_grad": {"max_norm": 0.1, "foreach": None}},
        {"checkpointer": {"period": 1e4}},
        {"checkpointer": {"period": 1, "max_to_keep": None, "file_prefix": "m", "max_iter": 9}},
    ],
)
def test_what_is_allowed(change):
    options = changed(change)
    assert {key: getattr(options, key) for key in change} == change


def test_timeouts():
    assert changed({"timeout": {"steps": 5}}).seconds("steps") == 5
    assert changed({"timeout": {"steps": 5}}).seconds("evaluation") == 1800
    assert changed({"timeout": None}).seconds("steps") == 600
    old = load_config("configs/common/train.py")
    del old.train["timeout"]  # a config saved by an older version
    assert train_options(old).seconds("steps") == 600


def test_a_missing_option_is_named():
    cfg = load_config("configs/common/train.py")
    del cfg.train["seed"]
    with pytest.raises(ConfigError, match="train.seed is missing"):
        train_options(cfg)
    with pytest.raises(ConfigError, match="the config has no 'train'"):
        train_options(DictConfig({}))
