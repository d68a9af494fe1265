"""The two sides of the distillation benchmark are one and the same training."""

import json
import math
from dataclasses import replace

import pytest
import torch

from densedet.benchmark.distill import PlainSamples, count_flops, our_side, plain_side, run_distill
from densedet.benchmark.machine import Settings
from densedet.benchmark.memory import run_memory
from densedet.benchmark.pictures import write_pictures
from densedet.benchmark.training import DistillJob, SameGrid
from densedet.errors import ConfigError

SETTINGS = Settings("cpu", threads=1, repeats=2, warmup=1)
JOB = DistillJob(SETTINGS, model="densedet-tiny", image_size=112, images=3, batch=2)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"), 3, height=60, width=81)


def test_both_sides_train_alike(records):
    """Same weights, cells and optimiser: only the resize differs, by a grey level at most."""
    ours, plain = our_side(JOB, records), plain_side(JOB, records)
    before = [parameter.detach().clone() for parameter in ours.parameters]
    for side in (ours, plain):
        side.run(2)
    assert ours.crops == plain.crops and min(ours.crops) > 0
    assert ours.losses == pytest.approx(plain.losses, abs=1e-3)
    for first, second in zip(ours.parameters, plain.parameters, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=5e-5)
    assert not all(torch.equal(a, b) for a, b in zip(before, ours.parameters, strict=True))


def test_the_plain_loader_pads_to_slots(records):
    samples = PlainSamples(records, SameGrid(), (0.0, 0.5, 1.0), (1.0, 0.5, 2.0), 64, 16)
    image, boxes, crops = samples[1]
    count = int(boxes[:, 4].sum())
    assert image.shape == (3, 64, 64) and boxes.shape == (20, 5) and crops.shape == (20, 3, 16, 16)
    assert 1 <= count <= 20 and torch.equal(boxes[:count, 4], torch.ones(count))
    # an image of 60x81 becomes 47x64: black below, which is (0 - mean) / std
    assert boxes[:count, 2].max() == 1 and boxes[:count, 3].max() == pytest.approx(60 / 81)
    below = image[:, 47:]
    assert torch.equal(below, torch.tensor([0.0, -1.0, -0.5])[:, None, None].expand_as(below))
    assert image[:, :47].std() > 0.1
    assert not boxes[count:].any() and not crops[count:].any()
    again = samples[1]
    assert all(torch.equal(a, b) for a, b in zip((image, boxes, crops), again, strict=True))


def test_workers_give_the_same_batches(records):
    for build in (our_side, plain_side):
        alone, helped = build(JOB, records), build(replace(JOB, workers=1), records)
        alone.run(2)
        helped.run(2)
        assert alone.losses == pytest.approx(helped.losses, abs=1e-6)


def test_flops_against_a_count_by_hand(records):
    """2 FLOPs a weight and token, and 4 for a pair of tokens and a channel in attention."""
    image, crop = count_flops(JOB, records)
    tower = JOB.build_tower().tower
    weights = {n: p.numel() for n, p in tower.named_parameters() if p.ndim > 1 and "block" in n}

    def forward(side: int) -> tuple[int, int]:
        """Of the blocks, and of the attention of one."""
        tokens = (side // 8) ** 2 + 1
        return 2 * sum(weights.values()) * tokens, 4 * tokens**2 * 128

    matrices, attention = forward(48)
    rest = crop - matrices - 4 * attention  # the stem of convolutions and the projection
    assert 0 < rest < 0.2 * crop
    # the student: the last block has no attention, queries and keys; backward counts twice (2.5)
    matrices, attention = forward(JOB.image_size)
    unused = 2 * 2 * 128 * 128 * ((JOB.image_size // 8) ** 2 + 1)
    expected = 3 * (matrices - unused) + 3 * attention * (1 + 2.5)
    assert expected < image < 1.2 * expected


def test_run():
    result = run_distill(JOB)
    assert result["losses_agree"] and 0 < result["first_losses"]["ours"] < 2
    assert result["speedup"] > 0 and result["crops_per_image"] >= 1
    for figure in ("images_per_s", "matrix_share"):
        assert set(result[figure]) == {"ours", "reference"}
        assert all(0 < value < math.inf for value in result[figure].values())
    seconds = result["ours"]["median_s"]
    assert result["images_per_s"]["ours"] == pytest.approx(2 / seconds)
    flops = 2 * (result["image_flops"] + result["crops_per_image"] * result["crop_flops"])
    share = flops / seconds / result["matrix_peak"]
    assert result["matrix_share"]["ours"] == pytest.approx(share)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.slow
def test_memory_with_and_without_checkpointing():
    result = run_memory(replace(JOB, image_size=256, batch=4, images=4))
    with_it, without = (result[f"{name}_checkpointing"] for name in ("with", "without"))
    assert result["reduction"] == pytest.approx(100 * (1 - with_it / without))
    assert 0 < with_it < without


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--batch 0 must be at least 1"),
        ({"crop_size": 0}, "--crop-size 0 must be at least 1"),
        ({"workers": -1}, "--workers -1 must not be negative"),
        ({"settings": Settings("cpu", "fp16")}, "--precision fp16 needs a CUDA device"),
    ],
)
def test_wrong_jobs(options, message):
    with pytest.raises(ConfigError, match=message):
        replace(JOB, **options)


def test_steps_that_do_not_use_all_workers_alike():
    with pytest.raises(ConfigError, match="--steps 3 must be a multiple of --workers 2"):
        run_distill(replace(JOB, workers=2, steps=3))


def test_sizes_that_do_not_fit_the_model():
    with pytest.raises(ConfigError, match="--image-size 100 is no multiple of 8, the stride of"):
        replace(JOB, image_size=100).build_tower()
    with pytest.raises(ConfigError, match="no CLIP architecture named 'densedet-tinny'"):
        replace(JOB, model="densedet-tinny").build_tower()


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_both_sides_on_cuda(precision, records):
    job = replace(JOB, settings=replace(SETTINGS, device="cuda", precision=precision))
    ours, plain = our_side(job, records), plain_side(job, records)
    for side in (ours, plain):
        side.run(2)
    assert ours.losses == pytest.approx(plain.losses, abs=1e-3 if precision == "fp32" else 1e-2)
