"""What the demos show of an image, and what they write: tools/demo.py and tools/web_demo.py."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from densedet.predictor import Predictor, coco_results, segment_results
from densedet.tasks import Task
from densedet.visualization import draw_detections, draw_segments, draw_similarity

Results = list[dict[str, Any]]
View = Callable[[NDArray[Any], int], tuple[NDArray[Any], Results]]
"""An image (H, W, 3) uint8 RGB and its number to what is drawn, likewise, and what is written."""


def detections_view(predictor: Predictor, shown: Sequence[str], threshold: float) -> View:
    """Of instances with some labels and at least a score in 0..1; results as of `coco_results`."""

    def view(image: NDArray[Any], number: int) -> tuple[NDArray[Any], Results]:
        found = predictor.predict(image, threshold, "instance").only(shown)
        assert found.instances is not None
        drawn = draw_detections(image, found.instances, found.vocabulary.labels)
        return drawn, coco_results(found.instances, number, found.vocabulary)

    return view


def segments_view(
    predictor: Predictor, shown: Sequence[str], threshold: float, panoptic: bool
) -> View:
    """Of panoptic segments, or of the classes of the pixels; results as of `segment_results`."""

    task: Task = "panoptic" if panoptic else "semantic"

    def view(image: NDArray[Any], number: int) -> tuple[NDArray[Any], Results]:
        prediction = predictor.predict(image, threshold, task).only(shown)
        masks, segments = prediction.segment_masks()
        found = segment_results(masks, segments, number, prediction.vocabulary)
        labels, scores = [r["label"] for r in found], [r.get("score") for r in found]
        return draw_segments(image, masks.numpy(), labels, scores), found

    return view


def similarity_view(predictor: Predictor, phrase: str) -> View:
    """Of the cosine with a phrase, as a heat map; written are its range and its highest place."""

    def view(image: NDArray[Any], number: int) -> tuple[NDArray[Any], Results]:
        cosines = predictor.similarity(phrase, image)
        row, column = divmod(int(cosines.argmax()), cosines.shape[1])
        found = {
            "image_id": number,
            "phrase": phrase,
            "lowest": round(float(cosines.min()), 5),
            "highest": round(float(cosines.max()), 5),
            "at": [column, row],
        }
        return draw_similarity(image, cosines.numpy(), phrase), [found]

    return view
