"""``evaluate``: panoptic quality in memory against Detectron2's way over PNG files.

The reference is ``COCOPanopticEvaluator``: every prediction is written as a PNG and read again by
``panopticapi``. Both sides read the truth from PNG files, and both run in one process; a second
comparison is densedet's evaluator with two worker processes against one.
"""

import contextlib
import copy
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, DatasetEvaluator
from numpy.typing import NDArray

from densedet.benchmark.machine import Settings, positive
from densedet.benchmark.timing import SIDES, compare, row, time_in_turn
from densedet.data import register_panoptic_format
from densedet.data.segment_map import MAX_ID, write_segment_map
from densedet.errors import InstallationError
from densedet.evaluation import OpenVocabularyPanopticEvaluator
from densedet.vocabulary import Vocabulary

_NAME = "densedet_benchmark_panoptic"
_VOCABULARY = "coco_panoptic"
_WRONG = 0.15  # of the predicted segments have another category
_SHIFT = 4  # pixels between prediction and truth

Pair = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class PanopticSizes:
    """What is evaluated.

    Attributes:
        images: with a prediction each.
        height, width: of the images, pixels.
        segments: true segments of an image, one of them a crowd.

    Raises:
        ConfigError: a number is below 1.
    """

    images: int = 100
    height: int = 480
    width: int = 640
    segments: int = 20

    def __post_init__(self) -> None:
        positive(images=self.images, height=self.height, width=self.width, segments=self.segments)


def run(settings: Settings, sizes: PanopticSizes | None = None) -> dict[str, Any]:
    """Time both evaluators in turn, and ours with two workers and with one.

    Everything from the annotation file to the figures is timed.

    Returns:
        {"speedup" and the rest of :func:`compare`; "workers": the same for two worker processes
        ("ours") against one ("reference"); "largest_difference": between the figures of both, in
        percent; "PQ": of the synthetic predictions; "images", "height", "width", "segments"}.

    Raises:
        InstallationError: panopticapi is missing.
    """
    sizes = sizes or PanopticSizes()
    with (
        tempfile.TemporaryDirectory(prefix="densedet_panoptic_") as folder,
        _registered(Path(folder), sizes) as pairs,
        _one_process(),
    ):
        ours, reference = _ours(pairs, 0), _reference(pairs)
        times = time_in_turn(
            {
                "ours": lambda: _ours(pairs, 0),
                "reference": lambda: _reference(pairs),
                "two workers": lambda: _ours(pairs, 2),
                "one worker": lambda: _ours(pairs, 1),
            },
            torch.device("cpu"),
            settings.repeats,
            settings.warmup,
        )
    return {
        **compare(times["ours"], times["reference"]),
        "workers": compare(times["two workers"], times["one worker"]),
        "largest_difference": max(float(abs(ours[k] - v)) for k, v in reference.items()),
        "PQ": ours["PQ"],
        "images": sizes.images,
        "height": sizes.height,
        "width": sizes.width,
        "segments": sizes.segments,
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    lines = {"panoptic": result, "panoptic, 2 workers against 1": result["workers"]}
    return [
        row(
            f"{name}, an image",
            {side: 1e3 * line[side]["median_s"] / result["images"] for side in SIDES},
            "{:.2f} ms",
            f"{line['speedup']:.2f}",
        )
        for name, line in lines.items()
    ]


def _ours(pairs: list[Pair], workers: int) -> dict[str, float]:
    return _evaluate(OpenVocabularyPanopticEvaluator(_NAME, workers=workers), pairs)


def _reference(pairs: list[Pair]) -> dict[str, float]:
    return _evaluate(COCOPanopticEvaluator(_NAME), pairs)


def _evaluate(evaluator: DatasetEvaluator, pairs: list[Pair]) -> dict[str, float]:
    evaluator.reset()
    for sample, output in pairs:
        ids, segments = output["panoptic_seg"]
        # the reference takes keys out of the segments
        evaluator.process([sample], [{"panoptic_seg": (ids, copy.deepcopy(segments))}])
    results: dict[str, float] = evaluator.evaluate()["panoptic_seg"]
    return results


@contextmanager
def _one_process() -> Iterator[None]:
    """Have panopticapi score in this process: it starts one for each core, at every evaluation."""
    try:
        from panopticapi import evaluation
    except ImportError as error:
        raise InstallationError(
            "the reference needs panopticapi: pip install --no-deps panopticapi-lite"
        ) from error

    def single(pairs: list[Any], *arguments: Any) -> Any:
        return evaluation.pq_compute_single_core(0, pairs, *arguments)

    before = evaluation.pq_compute_multi_core
    evaluation.pq_compute_multi_core = single
    try:
        yield
    finally:
        evaluation.pq_compute_multi_core = before


@contextmanager
def _registered(folder: Path, sizes: PanopticSizes) -> Iterator[list[Pair]]:
    """Write and register synthetic truth, always the same; yields inputs and predictions."""
    vocabulary = Vocabulary.named(_VOCABULARY)
    pairs, images, annotations = [], [], []
    for number in range(sizes.images):
        rng = np.random.default_rng(number)
        regions = _regions(rng, sizes)
        categories = rng.integers(0, len(vocabulary), sizes.segments)
        name = f"{number:06d}"
        segments = _write_truth(folder / f"{name}.png", regions, categories, rng)
        annotations.append(
            {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
        )
        image = {"file_name": f"{name}.jpg", "height": sizes.height, "width": sizes.width}
        images.append({"id": number, **image})
        pairs.append(
            ({"image_id": number, **image}, _predict(regions, categories, vocabulary, rng))
        )
    content = {"images": images, "annotations": annotations, "categories": _categories(vocabulary)}
    json_file = folder / "panoptic.json"
    json_file.write_text(json.dumps(content))
    try:
        register_panoptic_format(_NAME, json_file, folder, folder, vocabulary)
        yield pairs
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            with contextlib.suppress(KeyError):
                catalog.remove(_NAME)


def _categories(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [
        {"id": i + 1, "name": category.label, "isthing": int(category.kind == "thing")}
        for i, category in enumerate(vocabulary)
    ]


def _regions(rng: np.random.Generator, sizes: PanopticSizes) -> NDArray[np.int64]:
    """[H, W]: a number of each region, 0 to ``segments``: the cells nearest to random places.

    The cells of places in a plane that is bent by waves have curved edges.
    """
    y, x = np.mgrid[: sizes.height, : sizes.width].astype(np.float32)
    for period in (160, 60, 25):
        phase = rng.uniform(0, 2 * np.pi, 2)
        bend = period / 6
        x, y = (
            x + bend * np.sin(2 * np.pi * y / period + phase[0]),
            y + bend * np.sin(2 * np.pi * x / period + phase[1]),
        )
    places = rng.uniform(0, (sizes.height, sizes.width), (sizes.segments + 1, 2))
    distances = [(y - row) ** 2 + (x - column) ** 2 for row, column in places]
    regions: NDArray[np.int64] = np.argmin(distances, axis=0)
    return regions


def _write_truth(
    path: Path,
    regions: NDArray[np.int64],
    categories: NDArray[np.int64],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Write the PNG: region 0 is void; returns the segments that are visible, the first a crowd."""
    ids = np.concatenate([[0], rng.choice(MAX_ID, len(categories), replace=False) + 1])
    areas = np.bincount(regions.ravel(), minlength=len(ids))
    write_segment_map(path, ids[regions])
    return [
        {
            "id": int(ids[region]),
            "category_id": int(categories[region - 1]) + 1,
            "area": int(areas[region]),
            "bbox": [0, 0, regions.shape[1], regions.shape[0]],
            "iscrowd": int(region == 1),
        }
        for region in range(1, len(ids))
        if areas[region]
    ]


def _predict(
    regions: NDArray[np.int64],
    categories: NDArray[np.int64],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What a model would give: the regions, shifted, void included, some named wrongly."""
    shifted = np.roll(regions, rng.integers(-_SHIFT, _SHIFT + 1, 2), axis=(0, 1))
    other = rng.integers(0, len(vocabulary), len(categories) + 1)
    named = np.concatenate([other[:1], categories])
    named = np.where(rng.random(len(named)) < _WRONG, other, named).tolist()
    segments = [
        {"id": i + 1, "category_id": named[i], "isthing": vocabulary.kinds[named[i]] == "thing"}
        for i in np.unique(shifted).tolist()
    ]
    return {"panoptic_seg": (torch.from_numpy(shifted + 1).to(torch.int32), segments)}
