"""Configs, overrides and their errors."""

import builtins

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from torch import nn

from densedet.engine.config import apply_overrides, build, check_arguments, load_config
from densedet.errors import ConfigError, DatasetError


def _cfg(**more):
    layer = L(nn.Linear)(in_features=2, out_features=3)
    content = {"model": layer, "train": {"max_iter": 5, "clip": None}, "steps": [1, 2], **more}
    return DictConfig(content, flags={"allow_objects": True})


def test_overrides_change_add_and_reach_arguments():
    cfg = _cfg()
    apply_overrides(
        cfg,
        ["train.max_iter=7", "steps.1=9", "model.bias=False", "+extra.deep=x", "extra.deep='a b'"],
    )
    assert (cfg.train.max_iter, list(cfg.steps), cfg.extra.deep) == (7, [1, 9], "a b")
    assert build(cfg.model, "model").bias is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_itr=7", r"no key 'max_itr' in train; did you mean max_iter\?"),
        ("trian.max_iter=7", r"no key 'trian' at the top of the config; did you mean train\?"),
        ("model.in_feature=7", r"no key 'in_feature' in model; did you mean in_features"),
        ("train.clip.max_norm=1", r"train.clip is None and has no key 'max_norm'"),
        ("train.max_iter.x=1", r"train.max_iter is 5 and has no key 'x'"),
        ("steps.2=1", "steps is a list of 2, not '2'"),
        ("train.max_iter", "not of the form key=value"),
        ("train.max_iter=[1", "not of the form key=value"),
        ("~train.max_iter", "only key=value and \\+key=value"),
        ("train.max_iter=1,2", "only key=value and \\+key=value"),
    ],
)
def test_overrides_that_fit_nothing_are_refused(override, message):
    cfg = _cfg()
    with pytest.raises(ConfigError, match=message):
        apply_overrides(cfg, [override])
    assert cfg == _cfg()


def test_unknown_and_missing_arguments_are_found_before_building():
    cfg = _cfg(nested=[L(nn.Sequential)(), {"deep": L(nn.Conv2d)(in_chanels=3)}])
    with pytest.raises(
        ConfigError, match=r"nested\.1\.deep: Conv2d has no argument 'in_chanels'; "
    ):
        check_arguments(cfg)
    with pytest.raises(ConfigError, match="model: Linear needs out_features"):
        build(L(nn.Linear)(in_features=2), "model")
    with pytest.raises(ConfigError, match="model: cannot import 'torch.nn.Linaer'"):
        build(L("torch.nn.Linaer")(), "model")
    with pytest.raises(ConfigError, match="model: Linear needs in_features"):
        build(L(nn.Linear)(in_features="???", out_features=1), "model")


class Picky:
    """Refuses everything, in every way."""

    def __init__(self, how):
        if how == "bare":
            raise AssertionError
        if how == "path":
            raise AssertionError("data/1.png")
        raise {"value": ValueError, "type": TypeError, "own": DatasetError, "key": KeyError}[how](
            f"{how}:\n  refused"
        )


@pytest.mark.parametrize(
    ("node", "error", "message"),
    [
        (L(Picky)(how="value"), ConfigError, "model: value: refused"),
        (L(Picky)(how="type"), ConfigError, "model: type: refused"),
        (
            L(Picky)(how="bare"),
            ConfigError,
            "model: AssertionError at 'raise AssertionError' (",
        ),
        (
            L(Picky)(how="path"),
            ConfigError,
            "model: data/1.png; AssertionError at 'raise AssertionError(\"data/1.png\")' (test_",
        ),
        (L(Picky)(how=L(Picky)(how="own")), DatasetError, "own:\n  refused"),
        (L(Picky)(how="key"), KeyError, "'key:"),
        (
            L(torch.optim.SGD)(params=[torch.zeros(1)], lr=-1),
            ConfigError,
            "model: Invalid learning rate: -1",
        ),
    ],
)
def test_what_a_constructor_refuses_is_one_line(node, error, message):
    with pytest.raises(error) as caught:
        build(node, "model")
    assert type(caught.value) is error
    assert str(caught.value).startswith(message)
    assert error is not ConfigError or "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(a=1", "SyntaxError"),
        ("model = dict(a=1)\nx = undefined\n", r"config\.py, line 2: NameError: name 'undefined'"),
        ("from .nowhere import model\n", r"config\.py, line 1: ImportError.*nowhere"),
    ],
)
def test_a_config_that_does_not_run_names_file_and_line(tmp_path, text, message):
    file = tmp_path / "config.py"
    file.write_text(text)
    original = builtins.__import__
    with pytest.raises(ConfigError, match=message):
        load_config(str(file))
    assert builtins.__import__ is original


def test_a_missing_config_is_looked_up_in_the_model_zoo():
    with pytest.raises(ConfigError, match=r"no config 'configs/common/trian' in densedet's model"):
        load_config("configs/common/trian")
    assert load_config("configs/common/train").train.seed == 0


def test_a_config_that_is_no_regular_file(tmp_path):
    with pytest.raises(ConfigError, match="is no regular file"):
        load_config(str(tmp_path))
