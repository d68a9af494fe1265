"""The detection benchmark: data that are always the same, and figures that agree."""

import sys
from collections import Counter

import pycocotools.mask as mask_util
import pytest

from densedet.benchmark.detections import DetectionSizes, make_detections
from densedet.benchmark.evaluate_detection import detection_rows, run_coco, run_lvis
from densedet.benchmark.machine import Settings
from densedet.errors import ConfigError, InstallationError

SETTINGS = Settings("cpu", repeats=1, warmup=1)
TINY = DetectionSizes(images=5, objects=6, detections=30, classes=4, height=60, width=80)


@pytest.mark.parametrize("federated", [False, True])
def test_data(federated):
    data, detections = make_detections(TINY, federated)
    assert (data, detections) == make_detections(TINY, federated), "always the same"
    assert len(data["images"]) == 5 and len(data["categories"]) == 4
    objects = Counter(a["image_id"] for a in data["annotations"])
    assert objects == Counter({i: 6 for i in range(1, 6)})
    assert Counter(d["image_id"] for d in detections) == Counter({i: 30 for i in range(1, 6)})
    assert all(("neg_category_ids" in image) is federated for image in data["images"])
    for entry in (*data["annotations"], *detections):
        assert 1 <= entry["category_id"] <= 4 and min(entry["bbox"][2:]) > 0
    for detection in detections:
        assert detection["segmentation"]["size"] == [60, 80]
    areas = mask_util.area([d["segmentation"] for d in detections])
    assert 0 < (areas > 0).mean() <= 1


@pytest.mark.parametrize("run", [run_coco, run_lvis])
def test_figures_agree(run):
    result = run(SETTINGS, TINY)
    assert result["speedup"] > 0 and result["largest_difference"] < 1e-8
    assert 0 < result["AP"]["segm"] < 100 and 0 < result["AP"]["bbox"] < 100
    assert (result["images"], result["detections"], result["classes"]) == (5, 30, 4)
    (line,) = detection_rows("coco", result)
    assert line[0] == "coco, 5 images, boxes and masks" and line[1].endswith(" s")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="needs faster_coco_eval: pip install 'faster-coco"):
        run_coco(SETTINGS, TINY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lvis" else sys)
    with pytest.raises(InstallationError, match="needs lvis: pip install --no-deps lvis"):
        run_lvis(SETTINGS, TINY)
    with pytest.raises(ConfigError, match="--objects 0 must be at least 1"):
        DetectionSizes(images=1, objects=0, detections=1, classes=1)
