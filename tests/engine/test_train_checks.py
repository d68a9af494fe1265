"""What is checked between building the model and the first step."""

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import MetadataCatalog
from torch import nn

from densedet.engine.train import evaluate, train
from densedet.errors import ConfigError
from densedet.vocabulary import Vocabulary


class Model(nn.Linear):
    """A module with a vocabulary."""

    def __init__(self, vocabulary):
        super().__init__(1, 1)
        self.vocabulary = vocabulary


@pytest.mark.parametrize(("job", "part"), [(train, "train"), (evaluate, "test")])
def test_jobs_check_before_they_start(load_tiny, tmp_path, job, part):
    cfg = load_tiny("plain")
    cfg.model = L(Model)(vocabulary=L(Vocabulary.parse)(text="red;blue"))
    MetadataCatalog.get("tiny").vocabulary = Vocabulary.parse("red;green")
    with pytest.raises(ConfigError, match=f"data set tiny .* in dataloader.{part}: class 1 is"):
        job(cfg)
    assert not list(tmp_path.glob("out/*.json"))


def test_an_interpolation_that_leads_nowhere_is_named(load_tiny, tmp_path):
    cfg = load_tiny("plain", f"train.output_dir={tmp_path}")
    cfg.lr_multiplier.max_iter = "${nothing.here}"
    with pytest.raises(ConfigError, match="config cannot be resolved: .*nothing.*lr_multiplier"):
        train(cfg)
