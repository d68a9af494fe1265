"""What is checked between building the model and the first step."""

from collections.abc import Iterator

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d, get_norm
from omegaconf import DictConfig
from timm.layers import BatchNormAct2d
from torch import nn

from densedet.engine.train import (
    check_sync_norm,
    check_vocabulary,
    evaluate,
    synchronise_batch_norm,
    train,
)
from densedet.errors import ConfigError
from densedet.vocabulary import Vocabulary

COLOURS = Vocabulary.parse("red;green;blue")


class Model(nn.Linear):
    """A module with a vocabulary."""

    def __init__(self, vocabulary):
        super().__init__(1, 1)
        self.vocabulary = vocabulary


@pytest.fixture(autouse=True)
def _data_sets() -> Iterator[None]:
    for name in ("checked_colours", "checked_bare"):
        MetadataCatalog.pop(name, None)
    MetadataCatalog.get("checked_colours").vocabulary = COLOURS
    MetadataCatalog.get("checked_bare").thing_classes = ["a"]
    yield
    for name in ("checked_colours", "checked_bare", "tiny"):
        MetadataCatalog.pop(name, None)
    if "tiny" in DatasetCatalog:
        DatasetCatalog.remove("tiny")


def _cfg(names, part="train"):
    loader = {part: {"dataset": {"names": names}}}
    return DictConfig({"dataloader": loader}, flags={"allow_objects": True})


@pytest.mark.parametrize("names", ["checked_colours", ["checked_bare", "checked_colours"]])
@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (Vocabulary.parse("red;blue;green"), "class 1 is 'blue' in the model and 'green' in the"),
        (Vocabulary.parse("red;green"), "class 2 is nothing in the model and 'blue' in the data"),
        (
            COLOURS.with_unseen(["green"]),
            r"class 1 \('green'\) is unseen in the model, seen in",
        ),
    ],
)
def test_another_vocabulary_than_the_training_data_is_refused(names, vocabulary, message):
    start = r"model.vocabulary \(\d classes\) is not that of the data set checked_colours \(3"
    with pytest.raises(ConfigError, match=f"{start}.*in dataloader.train: {message}.*; set model"):
        check_vocabulary(_cfg(names), Model(vocabulary), "train")
    check_vocabulary(_cfg(names), Model(COLOURS), "train")


def test_seen_flags_do_not_matter_for_evaluation():
    cfg = _cfg("checked_colours", "test")
    check_vocabulary(cfg, Model(COLOURS.with_unseen(["green"])), "test")
    with pytest.raises(ConfigError, match="in dataloader.test: class 0 is 'x' in the model"):
        check_vocabulary(cfg, Model(Vocabulary.parse("x")), "test")


def test_what_has_no_vocabulary_is_not_checked():
    other = Model(Vocabulary.parse("x"))
    for names in ("checked_bare", "checked_nowhere", None, 3):
        check_vocabulary(_cfg(names), other, "train")
    assert "checked_nowhere" not in MetadataCatalog
    check_vocabulary(_cfg("checked_colours"), nn.Linear(1, 1), "train")
    for loader in ({}, {"train": [1]}, {"train": {"dataset": [{"id": 1}]}}, {"train": {}}):
        check_vocabulary(DictConfig({"dataloader": loader}), other, "train")


@pytest.mark.parametrize(("job", "part"), [(train, "train"), (evaluate, "test")])
def test_jobs_check_before_they_start(load_tiny, tmp_path, job, part):
    cfg = load_tiny("plain")
    cfg.model = L(Model)(vocabulary=L(Vocabulary.parse)(text="red;blue"))
    MetadataCatalog.get("tiny").vocabulary = Vocabulary.parse("red;green")
    with pytest.raises(ConfigError, match=f"data set tiny .* in dataloader.{part}: class 1 is"):
        job(cfg)
    assert not list(tmp_path.glob("out/*.json"))


def test_sync_norm_is_refused_in_several_processes_on_the_cpu():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), get_norm("SyncBN", 4))
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match="^1 is a SyncBatchNorm.*2 processes.*set the norm to BN"):
        check_sync_norm(model, cpu, 2)
    check_sync_norm(model, cpu, 1)
    check_sync_norm(model, torch.device("cuda", 0), 2)
    check_sync_norm(nn.Sequential(get_norm("BN", 4), get_norm("GN", 32)), cpu, 2)


def test_batch_norms_are_synchronised_in_several_processes_on_cuda(caplog):
    model = nn.Sequential(nn.BatchNorm2d(4), get_norm("FrozenBN", 4), BatchNormAct2d(4))
    before = dict(model.state_dict(keep_vars=True))
    cuda = torch.device("cuda", 0)
    for unchanged in ((cuda, 1), (torch.device("cpu"), 2)):
        assert synchronise_batch_norm(model, *unchanged) is model
        assert type(model[0]) is nn.BatchNorm2d
    assert "on cpu each of the 2 processes has its own batch statistics" in caplog.text
    assert synchronise_batch_norm(model, cuda, 2) is model
    assert type(model[0]) is nn.SyncBatchNorm
    assert isinstance(model[1], FrozenBatchNorm2d)
    assert isinstance(model[2], nn.SyncBatchNorm) and isinstance(model[2].act, nn.ReLU)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before) and all(after[key] is before[key] for key in before)


def test_an_interpolation_that_leads_nowhere_is_named(load_tiny, tmp_path):
    cfg = load_tiny("plain", f"train.output_dir={tmp_path}")
    cfg.lr_multiplier.max_iter = "${nothing.here}"
    with pytest.raises(ConfigError, match="config cannot be resolved: .*nothing.*lr_multiplier"):
        train(cfg)
