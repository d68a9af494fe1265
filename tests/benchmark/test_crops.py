"""The loader benchmark: the pixels of both sides agree, and the figures are there."""

import json

import pytest

from densedet.benchmark.crops import CropSizes, crop_rows, run_crops
from densedet.benchmark.machine import Settings
from densedet.errors import ConfigError

SIZES = CropSizes(images=3, height=60, width=81, student_size=64, crop_size=16)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_crops(precision):
    result = run_crops(Settings("cpu", precision, repeats=2, warmup=1), SIZES)
    assert result["largest_difference"] <= 1
    count = result["crops_per_image"]
    assert 1 <= count <= 20
    shipped = result["bytes_per_image"]
    assert 3 * 60 * 81 < shipped["ours"] < 3 * 60 * 81 + 20 * 6 * 8 + 100
    assert shipped["padded_reference"] == 4 * (3 * 64 * 64 + 20 * 5 + 20 * 3 * 16 * 16)
    assert result["loader"]["speedup"] > 0 and result["padded_loader"]["speedup"] > 0
    ours = result["loader"]["ours"]["median_s"]
    assert result["images_per_s"]["ours"] == pytest.approx(3 / ours)
    assert result["device_images_per_s"] == pytest.approx(1e3 / result["device_ms"]["ours"])
    assert [len(line) for line in crop_rows(result)] == [4] * 5
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_sizes_are_checked():
    with pytest.raises(ConfigError, match="--images 0 must be at least 1"):
        CropSizes(images=0)
    with pytest.raises(ConfigError, match="--height 9 must be at least 10"):
        CropSizes(height=9)
    with pytest.raises(ConfigError, match="--width 9 must be at least 10"):
        CropSizes(width=9)


@pytest.mark.cuda
def test_crops_on_cuda():
    assert run_crops(Settings("cuda", repeats=2), SIZES)["largest_difference"] <= 1
