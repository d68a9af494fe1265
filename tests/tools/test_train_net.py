"""The command line of tools/lazyconfig_train_net.py: one clear line for every wrong use."""

import json
import logging
from pathlib import Path

import pytest
import torch

from densedet.cli import exit_code

ROOT = Path(__file__).resolve().parents[2]
PLAIN = str(ROOT / "tests/engine/configs/tiny_plain.py")


@pytest.fixture
def tool(load_script, capsys, tmp_path):
    """Run the tool in this process; return exit code and stderr."""
    module = load_script("tools/lazyconfig_train_net.py")
    threads = torch.get_num_threads()
    loggers = [logging.getLogger(name) for name in ("densedet", "detectron2", "fvcore")]
    before = [(log, log.level, log.propagate, list(log.handlers)) for log in loggers]
    folders = [
        f"train.output_dir='{tmp_path}/out'",
        f"dataloader.register.0.root='{tmp_path}/data'",
    ]

    def run(*arguments, config=PLAIN):
        code = exit_code(lambda: module.main(["--config-file", config, *arguments, *folders]))
        return code, capsys.readouterr().err

    yield run
    torch.set_num_threads(threads)
    for log, level, propagate, handlers in before:
        log.setLevel(level)
        log.propagate = propagate
        log.handlers[:] = handlers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.max_itr=3"], "did you mean max_iter?"),
        (["model.witdh=3"], "no key 'witdh' in model; did you mean width?"),
        (["+model.witdh=3"], "model: PlainModel has no argument 'witdh'; did you mean width?"),
        (["train.precision=half"], "train.precision='half': choose fp32, bf16, fp16"),
        (["train.device=tpu9"], "train.device='tpu9'"),
        (["train.num_threads=two"], "train.num_threads='two': give an integer >= 1, or null"),
        (["train.checkpointer=5"], "train.checkpointer=5: give a dict like {period: 5000,"),
        (["dataloader.train.dataset.names=nowhere"], "Dataset 'nowhere' is not registered"),
        (["dataloader.train.total_batch_size=0"], "total_batch_size=0 cannot be split"),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["train.init_checkpoint=/no/such.pth"], "checkpoint /no/such.pth does not exist"),
        (["--eval-only", "--resume"], "there is no checkpoint in"),
        (["train.hooks=[5]"], "train.hooks.0 is of the type int and has to be HookBase"),
        (["lr_multiplier=5"], "lr_multiplier is of the type int and has to be ParamScheduler or"),
        (["dataloader.train=5"], "dataloader.train is of the type int and has to be Iterable"),
        (["dataloader.train=null"], "the config has no dataloader.train"),
        (["model=5"], "model is of the type int and has to be Module: describe one with"),
        (["optimizer=5"], "optimizer.params must be L(get_parameters)(...)"),
        (["--eval-only", "dataloader.test=5"], "dataloader.test is of the type int and has to be"),
        (["--eval-only", "dataloader.evaluator=5"], "dataloader.evaluator is of the type int"),
        (["--machine-rank", "1"], "--machine-rank 1 does not fit --num-machines 1"),
        (
            ["train.precision=fp16", "train.grad_scaler={init_scale: 0}"],
            "train.grad_scaler.init_scale=0: give a number > 0",
        ),
        (["--num-gpus", "99"], "torchrun --nproc-per-node 99"),
        (["--num-gpus", "many"], "invalid int value: 'many'"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(tool, tmp_path, arguments, message):
    code, err = tool(*arguments)
    last = err.strip().splitlines()[-1]
    assert (code, last.startswith("error: ")) == (2, True), err
    assert message in last
    assert not list(tmp_path.glob("out/*.pth"))


def test_num_gpus_under_torchrun(tool, monkeypatch):
    places = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"} | places).items():
        monkeypatch.setenv(name, value)
    code, err = tool("--num-gpus", "2")
    assert (code, err.startswith("error: under torchrun leave out --num-gpus")) == (2, True)


def test_a_missing_config_file(tool):
    code, err = tool(config="no/such/config.py")
    assert code == 2
    assert err.startswith("error: no config 'no/such/config.py' in densedet's model zoo")


def test_an_output_folder_that_is_a_file(tool, tmp_path):
    (tmp_path / "out").write_text("")
    code, err = tool()
    assert code == 2
    assert f"train.output_dir={tmp_path}/out cannot be made" in err


def test_a_checkpoint_of_another_architecture(tool, tmp_path):
    torch.save({"head.weight": torch.ones(1, 9)}, tmp_path / "other.pth")
    code, err = tool("--eval-only", f"train.init_checkpoint='{tmp_path}/other.pth'")
    assert code == 2
    assert "other.pth: does not fit" in err and "missing: stem.weight" in err
    assert "1 of another shape: head.weight (1, 9) for (1, 8)" in err


def test_train_then_evaluate(tool, tmp_path):
    code, err = tool()
    assert code == 0, err
    out = tmp_path / "out"
    written = {f.name for f in out.iterdir() if not f.name.startswith("events.")}
    assert written == {
        "config.yaml",
        "gradients0.pt",
        "last_checkpoint",
        "log.txt",
        "metrics.json",
        "model_0000003.pth",
        "model_0000005.pth",
        "model_final.pth",
        "results.json",
    }
    assert len(list(out.glob("events.*"))) == 1
    log = (out / "log.txt").read_text()
    assert "eta: 0:00:0" in log and "iter: 5" in log and "loss_count" in log
    trained = json.loads((out / "results.json").read_text())
    assert trained["tiny"]["undefined"] is None
    (out / "results.json").unlink()

    code, err = tool("--eval-only", f"train.init_checkpoint='{out}/model_final.pth'")

    assert code == 0, err
    assert json.loads((out / "results.json").read_text()) == trained
