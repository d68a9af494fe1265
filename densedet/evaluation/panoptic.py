"""Open-vocabulary panoptic segmentation: PQ over things, stuff, seen and unseen categories."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from numpy.typing import NDArray
from torch import Tensor

from densedet.data.panoptic_format import panoptic_outline
from densedet.data.segment_map import read_segment_map, write_segment_map
from densedet.errors import DatasetError
from densedet.evaluation.evaluator import OpenVocabularyEvaluator, check_complete
from densedet.evaluation.open_vocabulary import mean_of_valid
from densedet.evaluation.panoptic_quality import (
    ImageMatches,
    PanopticCounts,
    Segments,
    match_segments,
)
from densedet.evaluation.parallel import TaskPool
from densedet.files import write_text

logger = logging.getLogger(__name__)

ImageId = int | str  # text in Cityscapes


class TrueImage(NamedTuple):
    """The truth of one image.

    Attributes:
        name: for messages.
        path: of the PNG of segment ids.
        segments: see :func:`match_segments`.
    """

    name: str
    path: str
    segments: Segments


class OpenVocabularyPanopticEvaluator(OpenVocabularyEvaluator):
    """Panoptic quality of predictions in memory, over groups of the vocabulary's categories.

    It stands in for Detectron2's ``COCOPanopticEvaluator``, with the same figures. Inputs need
    "image_id"; outputs have "panoptic_seg", a map ``[H, W]`` of segment ids of the size of the
    annotated image (0: nothing) and ``segments_info``, each with "id" and "category_id", the index
    in the vocabulary of the data set, for things and stuff alike. Each image counts once, and every
    annotated image needs a prediction.

    :meth:`evaluate` returns ``{"panoptic_seg": ...}`` in percent: PQ, SQ and RQ over all categories
    ("PQ"), things ("PQ_th"), stuff ("PQ_st"), those that the training had ("PQ_seen") and the
    others ("PQ_unseen"), each the mean over the categories that occur; and for each category
    ("PQ-<label>"). NaN where nothing occurs.

    Args:
        dataset_name: name in the catalogs; registered with
            :func:`densedet.data.register_panoptic_format`.
        workers: processes that read the truth and match segments while the model goes on; 0 does it
            in this process, about 5 ms for 640x480 pixels.
        output_dir: where the predictions are written in COCO's panoptic format, as
            ``predictions.json`` and ``panoptic_predictions/*.png``; by default they are not.

    Raises:
        DatasetError: the data set has no vocabulary, or its annotation file is missing or broken.
        ConfigError: ``workers`` is negative.
    """

    def __init__(
        self,
        dataset_name: str,
        workers: int = 0,
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("vocabulary") is None or metadata.get("panoptic_json") is None:
            raise DatasetError(
                f"data set {dataset_name!r} is not registered with a vocabulary and panoptic "
                "truth; register it with densedet.data.register_panoptic_format"
            )
        self.dataset_name = dataset_name
        self.vocabulary = metadata.vocabulary
        self._is_thing = np.array([kind == "thing" for kind in self.vocabulary.kinds])
        self.output_dir = None if output_dir is None else Path(output_dir)
        self._json_file: str = metadata.panoptic_json
        self._truth = _read_truth(DatasetCatalog.get(dataset_name))
        self._scores: TaskPool[ImageId, ImageMatches] = TaskPool(workers)
        self._predicted: dict[ImageId, Segments] = {}

    def reset(self) -> None:
        """Forget the images so far."""
        self._scores.reset()
        self._predicted.clear()

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Score a batch of images.

        Raises:
            DatasetError: an image is not in the data set; an output has no segments, a segment an
                unknown category or one of the other kind, or the map does not fit its segments.
            ImageError: a PNG of the truth cannot be read.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            image_id = sample["image_id"]
            if image_id in self._scores:
                continue
            image = self._truth.get(image_id)
            if image is None:
                raise DatasetError(
                    f"there is a prediction for image {image_id}, which is not annotated in "
                    f"{self._json_file}; evaluate it on the data set it was made from"
                )
            ids, segments = output["panoptic_seg"]
            segments = self._checked(segments, image.name)
            path = None
            if self.output_dir is not None:
                path = self.output_dir / "panoptic_predictions" / Path(image.path).name
                self._predicted[image_id] = segments
            self._scores.submit(image_id, _score, image, _compact(ids), segments, path)

    def _checked(self, segments: Segments | None, name: str) -> list[dict[str, int]]:
        if segments is None:
            raise DatasetError(
                f"prediction of {name}: segments_info is None; list the segments, each with 'id' "
                "and 'category_id'"
            )
        for segment in segments:
            category = segment["category_id"]
            record = f"prediction of {name}: segment {segment['id']} has category_id {category}"
            if not 0 <= category < len(self.vocabulary):
                raise DatasetError(
                    f"{record}; give an index of the {len(self.vocabulary)} categories of "
                    f"{self.dataset_name!r}"
                )
            is_thing = self._is_thing[category]
            if segment.get("isthing", is_thing) != is_thing:
                raise DatasetError(
                    f"{record} and isthing={segment['isthing']}, but "
                    f"{self.vocabulary.labels[category]!r} is {'thing' if is_thing else 'stuff'}; "
                    "give indices of the whole vocabulary, not of its things or stuff alone"
                )
        return [{key: int(segment[key]) for key in ("id", "category_id")} for segment in segments]

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The figures, on the main process; an empty dict on the others.

        Raises:
            DatasetError: an annotated image has no prediction.
            OutputError: the predictions cannot be written.
        """
        scores = _merged(comm.gather(self._scores.finish()))
        predicted = _merged(comm.gather(self._predicted))
        if not comm.is_main_process():
            return {}
        missing = [image.name for i, image in self._truth.items() if i not in scores]
        check_complete(self.dataset_name, missing, len(self._truth))
        if self.output_dir is not None:
            self._write(self.output_dir / "predictions.json", predicted)
        counts = PanopticCounts.of((scores[i] for i in self._truth), len(self.vocabulary))
        return {"panoptic_seg": self._figures(counts)}

    def _figures(self, counts: PanopticCounts) -> dict[str, float]:
        seen = np.array(self.vocabulary.seen)
        groups = {"": np.ones_like(seen), "_th": self._is_thing, "_st": ~self._is_thing}
        groups |= {"_seen": seen, "_unseen": ~seen}
        quality = counts.quality()
        results = {}
        for group, members in groups.items():
            figures = {f"{k}{group}": mean_of_valid(v[members]) for k, v in quality.items()}
            results.update(figures)
            logger.info(
                "%s: %s over the %d of %d categories that occur",
                self.dataset_name,
                ", ".join(f"{name} {value:.2f}" for name, value in figures.items()),
                (counts.occurs & members).sum(),
                members.sum(),
            )
        for metric, values in quality.items():
            labelled = zip(self.vocabulary.labels, values.tolist(), strict=True)
            results.update({f"{metric}-{label}": value for label, value in labelled})
        return results

    def _write(self, path: Path, predicted: Mapping[ImageId, Segments]) -> None:
        """Write COCO's panoptic format, with the category ids of the truth."""
        outline, indices = panoptic_outline(self.dataset_name)
        category_ids = {index: category_id for category_id, index in indices.items()}
        annotations = [
            {
                "image_id": image_id,
                "file_name": Path(image.path).name,
                "segments_info": [
                    {**segment, "category_id": category_ids[segment["category_id"]]}
                    for segment in predicted[image_id]
                ],
            }
            for image_id, image in self._truth.items()
        ]
        write_text(path, json.dumps({**outline, "annotations": annotations}))


def _compact(ids: Tensor) -> NDArray[np.integer]:
    """Segment ids in the smallest integer type: less to compare, and to send to a worker."""
    found: NDArray[np.integer] = ids.cpu().numpy()
    if not found.size or found.dtype.kind not in "iu" or found.min() < 0:
        return found
    return found.astype(np.min_scalar_type(found.max()))


def _score(
    image: TrueImage, ids: NDArray[np.integer], segments: Segments, path: Path | None
) -> ImageMatches:
    """Match the segments of an image, and write the prediction where a path says so."""
    matches = match_segments(
        read_segment_map(image.path), image.segments, ids, segments, image.name
    )
    if path is not None:
        write_segment_map(path, ids)
    return matches


def _read_truth(records: Sequence[dict[str, Any]]) -> dict[ImageId, TrueImage]:
    """The images of a data set by id."""
    return {
        record["image_id"]: TrueImage(
            f"image {record['image_id']} ({Path(record['file_name']).name})",
            record["pan_seg_file_name"],
            record["segments_info"],
        )
        for record in records
    }


def _merged(parts: Sequence[Mapping[ImageId, Any]]) -> dict[ImageId, Any]:
    """What several processes gathered, each image once."""
    return {image_id: value for part in parts for image_id, value in part.items()}
