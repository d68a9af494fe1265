"""Panoptic quality of segment maps in memory, by the rules of COCO's panoptic API.

The metric is that of "Panoptic Segmentation" (Kirillov et al., arXiv 1801.00868, section 4); where
the paper leaves a choice, COCO's ``panopticapi`` decides: the area of a true segment is the one
that its record states (where there is none, its pixels), only id 0 is void, of several crowd
regions of a category in an image the last one counts, and a true id without a record is neither
void nor a segment.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from densedet.errors import DatasetError

VOID = 0

Segments = Sequence[Mapping[str, Any]]


class ImageMatches(NamedTuple):
    """What one image adds to the metric.

    Attributes:
        matched: [M] int64, the categories of the pairs that match (true positives).
        ious: [M] float64, the IoU of each pair.
        missed: [F] int64, the categories of true segments without a match (false negatives).
        spurious: [S] int64, those of predicted segments without one (false positives).
    """

    matched: NDArray[np.int64]
    ious: NDArray[np.float64]
    missed: NDArray[np.int64]
    spurious: NDArray[np.int64]


def match_segments(
    truth: NDArray[np.integer],
    truth_segments: Segments,
    prediction: NDArray[np.integer],
    predicted_segments: Segments,
    name: str,
) -> ImageMatches:
    """Match the segments of one image: same category and an IoU above 0.5, void left out.

    Args:
        truth: [H, W] segment ids of any integer type; 0 is void.
        truth_segments: the segments, each with "id", "category_id" (0 to K-1), "area" in pixels and
            "iscrowd"; without "area" it is the pixels that the segment has in ``truth``.
        prediction: [H, W] segment ids; 0 is where nothing is predicted.
        predicted_segments: exactly the segments that occur in ``prediction``, each with "id" and
            "category_id".
        name: what is predicted, for messages: "image 7".

    Raises:
        DatasetError: the maps have other shapes or no integers; an id of the prediction occurs
            twice in its segments, or only in one of the two.
    """
    _check_maps(truth, prediction, name)
    truth_ids, predicted_ids, pixels = _overlaps(truth, prediction)
    columns = _columns(predicted_ids, predicted_segments, name)
    rows = _rows(truth_ids, [VOID, *(segment["id"] for segment in truth_segments)])
    void, *overlaps = pixels[np.ix_(rows, columns)]
    common = np.array(overlaps, dtype=np.int64).reshape(len(truth_segments), len(columns))
    return _match(
        common,
        void,
        pixels.sum(axis=0)[columns],
        _Truth.of(truth_segments, pixels.sum(axis=1)[rows[1:]]),
        np.array([segment["category_id"] for segment in predicted_segments], dtype=np.int64),
    )


class _Truth(NamedTuple):
    """The true segments of an image as arrays [G]."""

    categories: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]

    @classmethod
    def of(cls, segments: Segments, pixels: NDArray[np.int64]) -> "_Truth":
        areas = [segment.get("area", n) for segment, n in zip(segments, pixels, strict=True)]
        return cls(
            np.array([segment["category_id"] for segment in segments], dtype=np.int64),
            np.array(areas, dtype=np.float64),
            np.array([segment["iscrowd"] == 1 for segment in segments], dtype=np.bool_),
        )


def _check_maps(truth: NDArray[Any], prediction: NDArray[Any], name: str) -> None:
    if truth.ndim != 2 or truth.shape != prediction.shape:
        raise DatasetError(
            f"{name}: the prediction is {_size(prediction)} pixels (height x width), the truth "
            f"{_size(truth)}; give maps [H, W] of the size of the annotated image"
        )
    for what, ids in (("prediction", prediction), ("truth", truth)):
        if not np.issubdtype(ids.dtype, np.integer):
            raise DatasetError(f"{name}: the {what} is {ids.dtype}; give segment ids as integers")


def _size(ids: NDArray[Any]) -> str:
    return "x".join(map(str, ids.shape)) or "no"


def _overlaps(
    truth: NDArray[np.integer], prediction: NDArray[np.integer]
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.int64]]:
    """The T and P ids that occur, ascending, and the pixels of each pair [T + 1, P].

    The last row, of no id, is zero. Segments are made of long runs of pixels in a row of the image:
    only one pixel of each run is looked up.
    """
    first, second = truth.ravel(), prediction.ravel()
    is_start = np.ones(first.size, dtype=np.bool_)
    is_start[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=first.size)
    truth_ids, truth_index = np.unique(first[starts], return_inverse=True)
    predicted_ids, predicted_index = np.unique(second[starts], return_inverse=True)
    shape = len(truth_ids) + 1, len(predicted_ids)
    pairs = truth_index * shape[1] + predicted_index
    # the sums are whole numbers, and exact as long as they are below 2^53
    pixels = np.bincount(pairs, weights=lengths, minlength=shape[0] * shape[1])
    return truth_ids, predicted_ids, pixels.astype(np.int64).reshape(shape)


def _rows(present: NDArray[np.integer], ids: Sequence[int]) -> list[int]:
    """The place of each id among those of a map; -1, the row without pixels, where it lacks."""
    place = {int(segment_id): i for i, segment_id in enumerate(present)}
    return [place.get(segment_id, -1) for segment_id in ids]


def _columns(present: NDArray[np.integer], segments: Segments, name: str) -> list[int]:
    """The place of each predicted segment among the ids of its map, all of which must be there."""
    ids = [segment["id"] for segment in segments]
    repeated = [segment_id for segment_id, count in Counter(ids).items() if count > 1]
    columns = _rows(present, ids)
    absent = [segment_id for segment_id, i in zip(ids, columns, strict=True) if i < 0]
    unknown = sorted(set(present.tolist()) - {VOID, *ids})
    for wrong, problem in (
        (repeated, "occurs twice in its segments; give each segment its own id"),
        (absent, "is in its segments, but has no pixel in its map; leave such segments out"),
        (unknown, "is in its map, but not in its segments; list it, or set its pixels to 0"),
    ):
        if wrong:
            raise DatasetError(f"prediction of {name}: id {wrong[0]} {problem}")
    return columns


def _match(
    common: NDArray[np.int64],
    void: NDArray[np.int64],
    predicted_areas: NDArray[np.int64],
    truth: _Truth,
    predicted_categories: NDArray[np.int64],
) -> ImageMatches:
    """The rules of the metric.

    Args:
        common: [G, Q], pixels that a true and a predicted segment share.
        void: [Q], pixels of the predicted segments where the truth is void.
        predicted_areas: [Q], all their pixels.
        truth: of G segments.
        predicted_categories: [Q].
    """
    same = truth.categories[:, None] == predicted_categories
    union = predicted_areas + truth.areas[:, None] - common - void
    ious = np.zeros(common.shape)
    candidates = same & ~truth.crowds[:, None] & (common > 0)
    np.divide(common, union, out=ious, where=candidates)
    hits = ious > 0.5
    missed = truth.categories[~hits.any(axis=1) & ~truth.crowds]
    ignored = (void + _crowd_pixels(common, truth, predicted_categories)) / predicted_areas > 0.5
    spurious = predicted_categories[~hits.any(axis=0) & ~ignored]
    return ImageMatches(truth.categories[np.nonzero(hits)[0]], ious[hits], missed, spurious)


def _crowd_pixels(
    common: NDArray[np.int64], truth: _Truth, predicted_categories: NDArray[np.int64]
) -> NDArray[np.int64]:
    """[Q], the pixels of each predicted segment in the last crowd region of its category."""
    last = {int(truth.categories[i]): i for i in np.flatnonzero(truth.crowds)}
    pixels = [
        common[last[category], i] if category in last else 0
        for i, category in enumerate(predicted_categories.tolist())
    ]
    return np.array(pixels, dtype=np.int64)


class PanopticCounts(NamedTuple):
    """The sums over all images, by category.

    Attributes:
        iou: [K] float64, sum of the IoU of the true positives.
        tp: [K] int64, true positives.
        fp: [K] int64, false positives.
        fn: [K] int64, false negatives.
    """

    iou: NDArray[np.float64]
    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]

    @classmethod
    def of(cls, images: Iterable[ImageMatches], num_categories: int) -> "PanopticCounts":
        """Add images up, in their order.

        Args:
            images: what :func:`match_segments` gives, with categories below ``num_categories``.
            num_categories: K.
        """
        nothing = np.zeros(0, dtype=np.int64)
        first = ImageMatches(nothing, nothing.astype(np.float64), nothing, nothing)
        matched, ious, missed, spurious = map(np.concatenate, zip(*[first, *images], strict=True))

        def count(categories: NDArray[Any], weights: NDArray[Any] | None = None) -> NDArray[Any]:
            return np.bincount(categories, weights, minlength=num_categories)

        return cls(count(matched, ious), count(matched), count(spurious), count(missed))

    @property
    def occurs(self) -> NDArray[np.bool_]:
        """[K], whether the category has any segment, true or predicted, that counts."""
        return (self.tp + self.fp + self.fn) > 0

    def quality(self) -> dict[str, NDArray[np.float64]]:
        """ "PQ", "SQ" and "RQ" of each category: [K] in percent, nan where it never occurs.

        RQ, the recognition quality, is the F1 score; SQ, the segmentation quality, is the mean IoU
        of the true positives, 0 without any; PQ is their product.
        """
        segments = np.where(self.occurs, self.tp + 0.5 * self.fp + 0.5 * self.fn, np.nan)
        found = np.where(self.occurs, np.maximum(self.tp, 1), np.nan)
        return {
            "PQ": 100 * (self.iou / segments),
            "SQ": 100 * (self.iou / found),
            "RQ": 100 * (self.tp / segments),
        }
