"""The pooling benchmark: both sides agree, and the figures are there."""

import json

import pytest

from densedet.benchmark.machine import Settings
from densedet.benchmark.pool import PoolSizes, pool_rows, run_pool
from densedet.errors import ConfigError


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-6), ("bf16", 0.05)])
def test_pool(precision, tolerance, channels_last):
    sizes = PoolSizes(batch=2, channels=8, grid=12, split=3, channels_last=channels_last)
    result = run_pool(Settings("cpu", precision, repeats=2, warmup=1), sizes)
    assert result["boxes"] == 18 and result["map"] == [2, 8, 12, 12]
    assert 0 < result["largest_difference"] < tolerance
    assert result["largest_gradient_difference"] < tolerance
    for part in (result, result["random"]):
        for what in ("forward", "forward_backward"):
            assert part[what]["speedup"] > 0
            assert part[what]["ours"]["median_s"] > 0
    assert [len(line) for line in pool_rows(result)] == [4] * 4
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="--split 0 must be at least 1"):
        PoolSizes(split=0)


@pytest.mark.cuda
def test_pool_on_cuda():
    result = run_pool(Settings("cuda", repeats=2), PoolSizes(channels=8, grid=12, split=3))
    assert result["largest_difference"] < 1e-5
