"""The quickstart report."""

import re

import numpy as np
from PIL import Image

from densedet.evaluation.report import (
    PANOPTIC,
    build_report,
    detector_figures,
    panoptic_figures,
    read_curve,
    region_figures,
)

RESULTS = {
    "bbox": {"AP": 1.0, "AP50-seen": 51.234, "AP50-unseen": float("nan")},
    "segm": {"AP50-seen": 40.0, "AP50-unseen": None},
}


def test_figures_are_in_percent_and_nan_is_none():
    assert detector_figures(RESULTS) == {
        "seen_ap50_box": 51.23,
        "unseen_ap50_box": None,
        "seen_ap50_mask": 40.0,
        "unseen_ap50_mask": None,
    }


def test_region_figures_are_the_top_1_accuracies():
    results = {"regions": {"boxes_macc1": 12.345, "boxes_macc5": 50.0, "stuff_macc1": float("nan")}}
    assert region_figures(results) == {"boxes_macc1": 12.35, "stuff_macc1": None}


def test_panoptic_figures():
    found = {"PQ_seen": 58.271, "PQ_unseen": float("nan"), "PQ_st": 81.0, "SQ": 67.6, "PQ": 50.5}
    assert panoptic_figures({"panoptic_seg": found}) == {
        "PQ_seen": 58.27,
        "PQ_unseen": None,
        "PQ_st": 81.0,
        "SQ": 67.6,
        "RQ": None,
    }


def test_curve_skips_records_without_the_scalar(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 19, "total_loss": 2.5}\n{"iteration": 20, "bbox/AP": 1.0}\n')
    assert read_curve(path) == [(19, 2.5)]


def test_page_is_self_contained(tmp_path):
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(picture)
    figures = detector_figures(RESULTS)
    regions = {"boxes_macc1": 33.25, "masks_macc1": 2.0, "stuff_macc1": None, "crops_macc1": 77.7}
    page = build_report(
        {"clip": figures, "<b>": figures},
        {"before": regions},
        {"before": {"mIoU": 2.06}},
        {"panoptic": dict.fromkeys(PANOPTIC, 61.26)},
        {"clip": [(0, 2.0), (1, 1.0)]},
        [(picture, "x & y")],
        [(picture, "p < q"), (picture, "r")],
        {"training scenes": 12},
    )
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<td>clip</td>" in page and "&lt;b&gt;" in page and "x &amp; y" in page
    assert ">51.2</td>" in page and ">–</td>" in page
    assert ">2.1</td>" in page and page.count(">61.3</td>") == 5 and "p &lt; q" in page
    assert re.search(r"\(CLIPSelf\):\s12 pictures, no label", page)
    assert "<td>training scenes</td><td>12</td>" in page
    assert ">33.2</td>" in page and ">77.7</td>" in page
