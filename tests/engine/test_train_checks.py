"""What is checked between building the model and the first step."""

from pathlib import Path

import pytest
from detectron2.config import LazyCall as L
from detectron2.data import MetadataCatalog
from omegaconf import OmegaConf
from torch import nn

from densedet.engine.train import evaluate, train
from densedet.errors import ConfigError
from densedet.exits import exit_code
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


@pytest.mark.parametrize("job", [train, evaluate])
@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("train", "^train must be a dict of options"),
        ("dataloader", "^dataloader is a int and has to hold keys"),
        ("dataloader.register", r"^dataloader.register must be a list of L\(...\)\(...\)"),
    ],
)
def test_parts_that_are_no_parts(load_tiny, job, key, message):
    cfg = load_tiny("plain")
    OmegaConf.update(cfg, key, 5)
    with pytest.raises(ConfigError, match=message):
        job(cfg)


def test_a_config_that_yaml_cannot_hold_is_trained_without_a_pickle(load_tiny, tmp_path, caplog):
    cfg = load_tiny("plain", "train.max_iter=1", "train.hooks=[]")
    cfg["odd"] = {"generator": (i for i in range(3))}
    train(cfg)
    assert "config.yaml is not written: YAML cannot hold what the config has" in caplog.text
    assert not [file for file in tmp_path.glob("out/config.yaml*")]


def test_an_error_is_logged_once(load_script, capsys, tmp_path):
    """On stderr by the tool and in log.txt, without Detectron2's traceback."""
    config = Path(__file__).parent / "configs/tiny_plain.py"
    tool = load_script("tools/lazyconfig_train_net.py")
    options = ["model.poison=1", f"train.output_dir={tmp_path}/out", "train.hooks=[]"]
    options.append(f"dataloader.register.0.root={tmp_path}/data")
    assert exit_code(lambda: tool.main(["--config-file", str(config), *options])) == 2
    said = capsys.readouterr()
    log = (tmp_path / "out/log.txt").read_text()
    for text, count in ((said.err, 1), (said.out, 0), (log, 1)):
        assert text.count("iteration 1: loss_shrink=nan") == count, text
        assert "Traceback" not in text and "Exception during" not in text
