"""Norms in several processes; two processes on the CPU, by torchrun through the real tool."""

import json

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, get_norm
from timm.layers import BatchNormAct2d
from torch import nn

from densedet.engine.checkpoint import read_checkpoint
from densedet.engine.config import build, load_config
from densedet.engine.distributed import check_sync_norm, synchronise_batch_norm
from densedet.engine.train import evaluate
from densedet.errors import ConfigError
from densedet.weights import load_strictly


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_tool):
    """A folder trained by two processes from weights that are known."""
    folder = tmp_path_factory.mktemp("two")
    options = [f"train.output_dir='{folder}/out'", f"dataloader.register.0.root='{folder}/data'"]
    cfg = load_config("tests/engine/configs/tiny_plain.py", options)
    torch.manual_seed(3)
    torch.save(build(cfg.model, "model").state_dict(), folder / "start.pth")
    done = run_tool("plain", *options, f"train.init_checkpoint='{folder}/start.pth'", nproc=2)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, options


def test_gradients_agree_and_are_the_mean_over_both_halves(trained):
    folder, options = trained
    rank0, rank1 = (torch.load(folder / f"out/gradients{r}.pt", weights_only=True) for r in (0, 1))
    cfg = load_config("tests/engine/configs/tiny_plain.py", options)
    build(cfg.dataloader.register[0], "register")
    batch = next(iter(build(cfg.dataloader.train, "train")))
    assert len(batch) == 4
    halves = []
    for half in (batch[:2], batch[2:]):
        model = build(cfg.model, "model")
        load_strictly(model, read_checkpoint(str(folder / "start.pth"))["model"], "start.pth")
        sum(model(half).values()).backward()
        halves.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})

    assert rank0.keys() == rank1.keys() == halves[0].keys()
    for name in rank0:
        assert torch.equal(rank0[name], rank1[name])
        mean = (halves[0][name] + halves[1][name]) / 2
        torch.testing.assert_close(rank0[name], mean, rtol=1e-5, atol=1e-7)
        assert not torch.allclose(halves[0][name], mean, rtol=1e-2)  # the halves do differ


def test_both_ranks_evaluate_and_one_writes(trained):
    folder, _ = trained
    results = json.loads((folder / "out/results.json").read_text())
    assert results["tiny"]["images"] == 12
    assert (folder / "out/log.txt.rank1").exists()
    checkpoint = torch.load(folder / "out/model_0000003.pth", weights_only=True)
    assert checkpoint["trainer"]["numbers"] == [{"calls": 4}, {"calls": 4}], "of both ranks"


def test_eval_only_under_torchrun_equals_one_process(trained, run_tool):
    folder, options = trained
    (folder / "out/results.json").unlink()

    done = run_tool("plain", "--eval-only", "--resume", *options, nproc=2)

    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((folder / "out/results.json").read_text())
    one = evaluate(
        load_config("tests/engine/configs/tiny_plain.py", options),
        weights=str(folder / "out/model_final.pth"),
    )
    assert two["tiny"]["images"] == one["tiny"]["images"] == 12
    assert two["tiny"]["score"] == pytest.approx(one["tiny"]["score"], abs=1e-5)


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
