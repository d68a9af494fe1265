"""Tables and curves of a vocabulary study."""

import csv
import math

import pytest
from matplotlib.figure import Figure
from PIL import Image

from densedet.engine.vocabulary_curves import (
    choose_metrics,
    scalar_figures,
    write_curves,
    write_table,
)
from densedet.errors import ConfigError


def test_figures_of_single_classes_are_left_out():
    results = {
        "bbox": {"AP": 1.0, "AP50-seen": math.nan, "AP50-a-b": 2.0, "AP50-door/gate": 3.0},
        "sem_seg": {"mIoU-seen-truth": 4, "IoU-sky": 5.0, "ACC-sky": None, "note": "text"},
    }
    assert scalar_figures(results, ["a-b", "sky", "door/gate", "gate"]) == {
        "bbox/AP": 1.0,
        "bbox/AP50-seen": None,
        "sem_seg/mIoU-seen-truth": 4,
    }


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("bbox/AP bbox/AP50 bbox/AP50-seen bbox/AP50-unseen bbox/AP50-all segm/AP50", "1 2 3"),
        ("x/PQ x/SQ x/PQ_th x/PQ_seen x/PQ_unseen", "0 3 4"),
        ("s/fwIoU s/mIoU s/mIoU-seen s/mIoU-unseen s/mIoU-seen-truth", "1 2 3"),
        ("s/mIoU s/mIoU-seen", "0"),
        ("regions/boxes regions/masks", "0"),
        ("score PQ", "1"),
    ],
)
def test_the_overall_figure_is_drawn_with_those_for_seen_and_unseen(names, chosen):
    figures = dict.fromkeys(names.split(), 1.0)
    assert choose_metrics(figures, []) == [names.split()[int(i)] for i in chosen.split()]


def test_without_unseen_classes_there_is_one_curve():
    figures = {"s/mIoU": 1.0, "s/mIoU-seen": 1.0, "s/mIoU-unseen": None}
    assert choose_metrics(figures, []) == ["s/mIoU"]
    assert choose_metrics(figures, ["s/mIoU-unseen", "s/mIoU"]) == ["s/mIoU-unseen", "s/mIoU"]


def test_an_unknown_metric_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match="'AP' is none of bbox/AP, bbox/AP50"):
        choose_metrics({"bbox/AP": 1.0, "bbox/AP50": 2.0}, ["bbox/AP50", "AP"])
    with pytest.raises(ConfigError, match="dataloader.evaluator reports no figures"):
        choose_metrics({}, [])


def test_table(tmp_path):
    rows = [{"count": 0, "x/PQ": 1 / 3, "x/PQ_seen": None}, {"count": 5, "x/PQ": 2, "x/PQ_seen": 1}]
    write_table(tmp_path / "deep" / "distractors.csv", rows)
    with open(tmp_path / "deep" / "distractors.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["count", "x/PQ", "x/PQ_seen"],
            ["0", repr(1 / 3), ""],
            ["5", "2", "1"],
        ]


def test_a_figure_that_a_setting_lacks_is_left_out(tmp_path):
    rows = [{"count": 0, "x/AP": 1.0}, {"count": 5, "x/AP": 2.0, "y/AP": 3.0}]
    write_table(tmp_path / "distractors.csv", rows)
    with open(tmp_path / "distractors.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [["0", "1.0", ""], ["5", "2.0", "3.0"]]
    write_curves(tmp_path / "distractors.png", rows, ["x/AP", "y/AP"])
    assert (tmp_path / "distractors.png").stat().st_size > 1000


ROWS = {
    "synonyms": [{"fraction": f, "x/PQ": 90 * f, "x/SQ": None} for f in (0.0, 0.5, 1.0)],
    "distractors": [{"count": n, "x/PQ": 60 - n, "x/SQ": 10.0} for n in (0, 10, 50)],
    "exponents": [
        {"swept": swept, "seen": 0.1, "unseen": 0.8, swept: value, "x/PQ": top * value, "x/SQ": 1.0}
        for swept, top in (("unseen", 20.0), ("seen", 80.0))
        for value in (0.0, 1.0)
    ],
}


@pytest.mark.parametrize("study", ROWS)
def test_curves_show_every_point(tmp_path, monkeypatch, study):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", _remembering(Figure.savefig, drawn))
    metrics = ["x/PQ", "x/SQ"]
    write_curves(tmp_path / f"{study}.png", ROWS[study], metrics)
    with Image.open(tmp_path / f"{study}.png") as picture:
        assert min(picture.size) > 400
    (figure,) = drawn
    assert figure.get_suptitle()
    points = []
    for axes in figure.axes:
        assert (axes.get_ylabel(), bool(axes.get_xlabel())) == ("percent", True)
        assert [text.get_text() for text in axes.get_legend().get_texts()] == metrics
        low, high = axes.get_ylim()
        line, other = axes.get_lines()
        points += zip(line.get_xdata(), line.get_ydata(), strict=True)
        shown = [y for y in (*line.get_ydata(), *other.get_ydata()) if not math.isnan(y)]
        assert low == 0 and all(0 <= y < high for y in shown)
    x = {"synonyms": ["fraction"], "distractors": ["count"], "exponents": ["unseen", "seen"]}[study]
    expected = [(row[n], row["x/PQ"]) for n in x for row in ROWS[study] if row.get("swept", n) == n]
    assert points == expected


def test_nothing_but_zeros_can_be_drawn(tmp_path):
    write_curves(tmp_path / "distractors.png", [{"count": 0, "x/PQ": 0.0}], ["x/PQ"])
    assert (tmp_path / "distractors.png").stat().st_size


def _remembering(original, drawn):
    def savefig(self, *args, **kwargs):
        drawn.append(self)
        return original(self, *args, **kwargs)

    return savefig
