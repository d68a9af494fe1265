"""What the demos show of an image, and what they write: tools/demo.py and tools/web_demo.py."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal

from numpy.typing import NDArray

from densedet import drawing, visualization
from densedet.predictor import Predictor, coco_results, segment_results
from densedet.tasks import Task

Draw = Literal["detectron2", "fast", "none"]
"""With Detectron2's visualizer, quickly (`densedet.drawing`), or not at all."""

Results = list[dict[str, Any]]
View = Callable[[NDArray[Any], int], tuple[NDArray[Any] | None, Results]]
"""An image (H, W, 3) uint8 RGB and its number to what is drawn, likewise, or None where nothing is,
and to what is written."""

_DRAWERS: dict[Draw, ModuleType | None] = {
    "detectron2": visualization,
    "fast": drawing,
    "none": None,
}


def detections_view(
    predictor: Predictor,
    shown: Sequence[str],
    threshold: float,
    draw: Draw = "detectron2",
    **limits: Any,
) -> View:
    """Of instances with some labels and at least a score in 0..1; results as of `coco_results`.

    ``limits`` go to `Predictor.predict`: ``top_k``, ``agnostic_nms``.
    """
    drawer = _DRAWERS[draw]

    def view(image: NDArray[Any], number: int) -> tuple[NDArray[Any] | None, Results]:
        found = predictor.predict(image, threshold, "instance", **limits).only(shown)
        assert found.instances is not None
        drawn = None
        if drawer is not None:
            drawn = drawer.draw_detections(image, found.instances, found.vocabulary.labels)
        return drawn, coco_results(found.instances, number, found.vocabulary)

    return view


def segments_view(
    predictor: Predictor,
    shown: Sequence[str],
    threshold: float,
    panoptic: bool,
    draw: Draw = "detectron2",
    **limits: Any,
) -> View:
    """Of panoptic segments, or of the classes of the pixels; results as of `segment_results`.

    ``limits`` are as of `detections_view`.
    """
    task: Task = "panoptic" if panoptic else "semantic"
    drawer = _DRAWERS[draw]

    def view(image: NDArray[Any], number: int) -> tuple[NDArray[Any] | None, Results]:
        prediction = predictor.predict(image, threshold, task, **limits).only(shown)
        masks, segments = prediction.segment_masks()
        found = segment_results(masks, segments, number, prediction.vocabulary)
        if drawer is None:
            return None, found
        labels, scores = [r["label"] for r in found], [r.get("score") for r in found]
        return drawer.draw_segments(image, masks.numpy(), labels, scores), found

    return view


def similarity_view(predictor: Predictor, phrase: str, draw: Draw = "detectron2") -> View:
    """Of the cosine with a phrase, as a heat map; written are its range and its highest place."""
    drawer = _DRAWERS[draw]

    def view(image: NDArray[Any], number: int) -> tuple[NDArray[Any] | None, Results]:
        cosines = predictor.similarity(phrase, image)
        row, column = divmod(int(cosines.argmax()), cosines.shape[1])
        found = {
            "image_id": number,
            "phrase": phrase,
            "lowest": round(float(cosines.min()), 5),
            "highest": round(float(cosines.max()), 5),
            "at": [column, row],
        }
        if drawer is None:
            return None, [found]
        return drawer.draw_similarity(image, cosines.numpy(), phrase), [found]

    return view
