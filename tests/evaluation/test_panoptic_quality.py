"""Panoptic quality: the reference vectors, panopticapi on random maps, and cases worked by hand."""

import contextlib
import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from densedet.errors import DatasetError
from densedet.evaluation.panoptic_quality import PanopticCounts, match_segments

SIZE = (13, 17)
CATEGORIES = 6


def _segment(segment_id: int, category: int, area: int = 0, crowd: int = 0) -> dict[str, int]:
    return {"id": segment_id, "category_id": category, "area": area, "iscrowd": crowd}


def _random_map(rng: np.random.Generator, ids: list[int], void: float) -> np.ndarray:
    """Overlapping boxes and single pixels."""
    found = np.zeros(SIZE, dtype=np.int64)
    for segment_id in ids:
        top, left = rng.integers(0, SIZE[0] - 1), rng.integers(0, SIZE[1] - 1)
        found[top : top + rng.integers(1, 12), left : left + rng.integers(1, 12)] = segment_id
    scattered = rng.random(SIZE) < void
    found[scattered] = rng.choice([0, *ids], scattered.sum())
    return found


def _random_image(rng: np.random.Generator) -> tuple[Any, Any, Any, Any]:
    """Maps and segments with everything that the rules speak of."""
    ids = rng.choice(256**3 - 1, 8, replace=False) + 1
    truth = _random_map(rng, ids.tolist(), rng.choice([0, 0.1]))
    # without a record: neither void nor a segment; without a pixel: missed
    recorded = [*ids[: rng.integers(0, 9)], *rng.choice(2, rng.integers(0, 2)) * (256**3 - 1)]
    truth_segments = [
        _segment(
            int(i),
            int(rng.integers(0, CATEGORIES - 1)),
            max(1, int((truth == i).sum() + rng.choice([0, 0, 3]))),
            int(rng.random() < 0.4),
        )
        for i in recorded
    ]
    prediction = truth.copy()
    noise = _random_map(rng, [1, 2, 3, 400], 0.05)
    prediction[noise > 0] = noise[noise > 0]
    prediction[rng.random(SIZE) < 0.05] = 0
    mine = {s["id"]: s["category_id"] for s in truth_segments}
    present = [int(i) for i in np.unique(prediction) if i or rng.random() < 0.1]
    predicted_segments = []
    for i in rng.permutation(present).tolist():
        category = mine.get(i, 0) if rng.random() < 0.8 else int(rng.integers(0, CATEGORIES - 1))
        predicted_segments.append({"id": i, "category_id": category})
    return truth, truth_segments, prediction, predicted_segments


def _panopticapi(images: list[tuple[Any, Any, Any, Any]], folder: Path) -> Any:
    """The oracle: its statistics over images written as PNG files."""
    pairs = []
    for number, image in enumerate(images):
        truth, truth_segments, prediction, predicted_segments = copy.deepcopy(image)
        records = []
        for kind, ids, segments in (
            ("truth", truth, truth_segments),
            ("prediction", prediction, predicted_segments),
        ):
            name = f"{kind}{number}.png"
            Image.fromarray(id2rgb(ids)).save(folder / name)
            records.append({"image_id": number, "file_name": name, "segments_info": segments})
        pairs.append(tuple(records))
    categories = {i: {"isthing": i % 2} for i in range(CATEGORIES)}
    with contextlib.redirect_stdout(io.StringIO()):
        return pq_compute_single_core(0, pairs, str(folder), str(folder), categories), categories


@pytest.mark.parametrize("seed", range(12))
def test_equal_to_panopticapi(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    images = [_random_image(rng) for _ in range(6)]
    before = copy.deepcopy(images)
    counts = PanopticCounts.of(
        [match_segments(*image, name=f"image {i}") for i, image in enumerate(images)], CATEGORIES
    )
    assert [image[1::2] for image in images] == [image[1::2] for image in before], "not modified"

    statistics, categories = _panopticapi(images, tmp_path)
    for i in range(CATEGORIES):
        expected = statistics[i]
        assert (counts.tp[i], counts.fp[i], counts.fn[i]) == (expected.tp, expected.fp, expected.fn)
        assert counts.iou[i] == pytest.approx(expected.iou, rel=1e-12)
    assert counts.tp.sum() > 0 and counts.fp.sum() > 0 and counts.fn.sum() > 0

    means, per_class = statistics.pq_average(categories, isthing=None)
    quality = counts.quality()
    for key, values in quality.items():
        assert np.nanmean(values) == pytest.approx(100 * means[key.lower()], rel=1e-12)
        for i, value in enumerate(values):
            assert np.nan_to_num(value) == pytest.approx(100 * per_class[i][key.lower()], rel=1e-12)
    assert np.isnan(quality["PQ"][CATEGORIES - 1]) and not counts.occurs[CATEGORIES - 1]
    assert means["n"] == counts.occurs.sum()


@pytest.mark.parametrize("dtypes", [(np.uint32, np.int32), (np.int64, np.uint8), (np.uint8,) * 2])
def test_integer_types(dtypes: tuple[type, type]) -> None:
    truth, prediction = np.array([[1, 1, 2, 2]]), np.array([[7, 7, 0, 9]])
    segments = [_segment(1, 0, 2), _segment(2, 1, 2)]
    found = [{"id": 7, "category_id": 0}, {"id": 9, "category_id": 1}]
    matches = match_segments(
        truth.astype(dtypes[0]), segments, prediction.astype(dtypes[1]), found, "image 1"
    )
    assert matches.matched.tolist() == [0] and matches.ious.tolist() == [1.0]
    assert matches.missed.tolist() == [1] and matches.spurious.tolist() == [1]


def test_ids_of_32_bits() -> None:
    """No PNG holds such ids, but maps in memory may."""
    ids = np.array([[2**31 + 5, 2**32 - 1]], dtype=np.uint32)
    segments = [_segment(2**31 + 5, 0, 1), _segment(2**32 - 1, 1, 1)]
    matches = match_segments(ids, segments, ids, segments, "image 1")
    assert matches.matched.tolist() == [0, 1] and matches.ious.tolist() == [1.0, 1.0]


def _one_row(
    truth: list[int], segments: list[dict[str, int]], prediction: list[int], *categories: int
) -> tuple[list[int], list[float], list[int], list[int]]:
    """Match maps of one row; the predicted segments are 1, 2, ..."""
    found = [{"id": i, "category_id": category} for i, category in enumerate(categories, 1)]
    matches = match_segments(np.array([truth]), segments, np.array([prediction]), found, "image 1")
    return tuple(values.tolist() for values in matches)


def test_half_is_no_match() -> None:
    # IoU 2 / 4, and 3 / 5
    assert _one_row([5, 5, 5, 0, 0], [_segment(5, 0, 3)], [1, 0, 0, 0, 0], 0)[2:] == ([0], [0])
    assert _one_row([5, 5, 5, 5], [_segment(5, 0, 4)], [1, 1, 0, 0], 0) == ([], [], [0], [0])
    assert _one_row([5, 5, 5, 5, 5], [_segment(5, 0, 5)], [1, 1, 1, 0, 0], 0) == (
        [0],
        [0.6],
        [],
        [],
    )


def test_void_counts_neither_in_the_union_nor_as_false() -> None:
    segments = [_segment(5, 3, 2)]
    assert _one_row([5, 5, 0, 0, 0], segments, [1, 1, 1, 1, 2], 3, 4) == ([3], [1.0], [], [])
    # half of it on void is not mostly void
    assert _one_row([5, 5, 0, 0], segments, [0, 1, 1, 0], 4) == ([], [], [3], [4])


def test_only_zero_is_void() -> None:
    assert _one_row([9, 9, 9], [], [1, 1, 1], 2) == ([], [], [], [2])


def test_crowds_are_never_missed_and_take_false_positives_of_their_category() -> None:
    crowd = [_segment(5, 3, 4, crowd=1)]
    assert _one_row([5, 5, 5, 5], crowd, [0, 0, 0, 0]) == ([], [], [], [])
    assert _one_row([5, 5, 5, 5], crowd, [1, 1, 2, 2], 3, 4) == ([], [], [], [4])
    two = [_segment(5, 3, 2, crowd=1), _segment(6, 3, 2, crowd=1)]
    assert _one_row([5, 5, 6, 6], two, [1, 1, 2, 2], 3, 3) == ([], [], [], [3]), "the last counts"


def test_the_area_of_the_truth_is_that_of_its_record() -> None:
    # the record says 4 pixels where the map has 2: IoU 2 / 4
    assert _one_row([5, 5, 0], [_segment(5, 0, 4)], [1, 1, 0], 0) == ([], [], [0], [0])


def test_nothing_at_all() -> None:
    counts = PanopticCounts.of([], 2)
    assert not counts.occurs.any()
    assert all(np.isnan(values).all() for values in counts.quality().values())


@pytest.mark.parametrize(
    ("prediction", "categories", "problem"),
    [
        ([1, 3, 0], (0,), "prediction of image 1: id 3 is in its map, but not in its segments"),
        ([1, 1, 0], (0, 0), "prediction of image 1: id 2 is in its segments, but has no pixel"),
        ([1, 1], (0,), "image 1: the prediction is 1x2 pixels .*, the truth 1x3"),
        ([1.0, 1.0, 0.0], (0,), "image 1: the prediction is float64; give segment ids as integers"),
    ],
)
def test_wrong_predictions(
    prediction: list[Any], categories: tuple[int, ...], problem: str
) -> None:
    with pytest.raises(DatasetError, match=problem):
        _one_row([5, 5, 0], [_segment(5, 0, 2)], prediction, *categories)


def test_an_id_twice() -> None:
    ids = np.array([[4]])
    twice = [{"id": 4, "category_id": 0}, {"id": 4, "category_id": 1}]
    with pytest.raises(DatasetError, match="image 1: id 4 occurs twice in its segments"):
        match_segments(ids, [], ids, twice, "image 1")


@pytest.mark.golden
def test_golden(golden_dir: Path) -> None:
    maps = np.load(golden_dir / "pq.npz")
    golden = json.loads((golden_dir / "pq.json").read_text("utf-8"))
    ids = [category["id"] for category in golden["categories"]]
    is_thing = np.array([category["isthing"] == 1 for category in golden["categories"]])

    def indexed(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**s, "category_id": ids.index(s["category_id"])} for s in segments]

    images = [
        match_segments(
            maps[f"gt{i}"],
            indexed(truth["segments_info"]),
            maps[f"pred{i}"],
            indexed(prediction["segments_info"]),
            truth["file_name"],
        )
        for i, (truth, prediction) in enumerate(zip(golden["gt"], golden["pred"], strict=True))
    ]
    expected = golden["expected"]
    _compare(PanopticCounts.of(images, len(ids)), expected["per_class"], ids)
    for image, per_class in zip(images, golden["expected_per_image"], strict=True):
        _compare(PanopticCounts.of([image], len(ids)), per_class, ids)

    quality = PanopticCounts.of(images, len(ids)).quality()
    groups = {"All": is_thing | True, "Things": is_thing, "Stuff": ~is_thing}
    for group, members in groups.items():
        assert np.isfinite(quality["PQ"][members]).sum() == expected[group]["n"]
        for key, values in quality.items():
            mean = np.nanmean(values[members]) / 100
            assert mean == pytest.approx(expected[group][key.lower()], abs=1e-12)


def _compare(
    counts: PanopticCounts, per_class: dict[str, dict[str, float]], ids: list[int]
) -> None:
    quality = counts.quality()
    assert len(per_class) == len(ids)
    for i, category in enumerate(ids):
        expected = per_class[str(category)]
        found = (counts.tp[i], counts.fp[i], counts.fn[i])
        assert found == (expected["tp"], expected["fp"], expected["fn"])
        assert counts.iou[i] == pytest.approx(expected["iou"], abs=1e-12)
        for key, values in quality.items():
            if sum(found):
                assert values[i] / 100 == pytest.approx(expected[key.lower()], abs=1e-12)
            else:
                assert math.isnan(values[i]) and expected[key.lower()] == 0
