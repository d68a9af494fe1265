"""What a model finds in an image."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from densedet.modeling.pixel_scores import as_scores
from densedet.tasks import Task
from densedet.vocabulary import Vocabulary

NONE = -1
"""The category of a pixel that is none of the vocabulary's."""

NONE_LABEL = "none of these"
"""What to show for `NONE`."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model finds in an image of H x W pixels, on the CPU; None for what it does not tell.

    Attributes:
        vocabulary: what was looked for; class indices are those of its categories.
        instances: ``pred_boxes`` in pixels, ``scores``, ``pred_classes`` and, of models with masks,
            ``pred_masks``.
        semantic: (H, W) int64, the class of each pixel, or `NONE`.
        confidence: (H, W) fp32, the probability of that class among all.
        panoptic: (H, W) int32, the segment of each pixel, 0 for none of these.
        segments: of ``panoptic``, each with "id", "category_id", "label" and "isthing", things also
            with "score", stuff with "area" in pixels.
    """

    vocabulary: Vocabulary
    instances: Instances | None = None
    semantic: Tensor | None = None
    confidence: Tensor | None = None
    panoptic: Tensor | None = None
    segments: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, outputs: dict[str, Any], vocabulary: Vocabulary) -> "Prediction":
        """From what a Detectron2 model in evaluation says of one image.

        Args:
            outputs: "instances", "sem_seg" (`PixelScores`, or a tensor of logits) or
                "panoptic_seg", as Detectron2 has them.
            vocabulary: that the model was asked for.
        """
        instances, scores = outputs.get("instances"), outputs.get("sem_seg")
        panoptic, segments = outputs.get("panoptic_seg", (None, ()))
        semantic = confidence = None
        if scores is not None:
            semantic, confidence = (found.cpu() for found in as_scores(scores).best())
        return cls(
            vocabulary=vocabulary,
            instances=None if instances is None else instances.to("cpu"),
            semantic=semantic,
            confidence=confidence,
            panoptic=None if panoptic is None else panoptic.cpu(),
            segments=tuple(
                {**segment, "label": vocabulary.labels[segment["category_id"]]}
                for segment in segments
            ),
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """The user's own word for each of the instances; () without any."""
        if self.instances is None:
            return ()
        return tuple(self.vocabulary.labels[i] for i in self.instances.pred_classes.tolist())

    def label(self, category: int) -> str:
        """The user's label of a category, or `NONE_LABEL` for `NONE`."""
        return NONE_LABEL if category == NONE else self.vocabulary.labels[category]

    @property
    def categories(self) -> Tensor | None:
        """The category (H, W) int64 of each pixel, or `NONE`; None if there are boxes alone.

        Of a detector with masks, the best detection there decides.
        """
        if self.panoptic is not None:
            found = [NONE] * (1 + max((s["id"] for s in self.segments), default=0))
            for segment in self.segments:
                found[segment["id"]] = segment["category_id"]
            return torch.tensor(found)[self.panoptic.long()]
        if self.semantic is not None:
            return self.semantic
        if self.instances is None or not self.instances.has("pred_masks"):
            return None
        painted = torch.full(self.instances.image_size, NONE)
        for row in self.instances.scores.argsort(stable=True).tolist():
            painted[self.instances.pred_masks[row]] = self.instances.pred_classes[row]
        return painted

    def above(self, score: float) -> "Prediction":
        """Without what is less certain: that becomes none of these.

        Args:
            score: the least score in 0..1 of an instance or of a panoptic thing, and the least
                probability of the class of a pixel in a semantic map. Panoptic stuff has no score.

        Raises:
            ValueError: a score outside 0..1.
        """
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"the score {score} must lie in 0..1")
        return self.without(score, score)

    def without(self, score: float, confidence: float) -> "Prediction":
        """As `above`, with one bound of instances and things, and another of pixels."""
        changed: dict[str, Any] = {}
        # a mask in the size of the image is copied only where one is dropped
        if self.instances is not None and (self.instances.scores < score).any():
            changed["instances"] = self.instances[self.instances.scores >= score]
        if confidence and self.semantic is not None and self.confidence is not None:
            changed["semantic"] = self.semantic.masked_fill(self.confidence < confidence, NONE)
        if any(s.get("score", 1.0) < score for s in self.segments):
            changed.update(self._panoptic(lambda s: s.get("score", 1.0) >= score))
        return replace(self, **changed)

    def telling(self, task: Task) -> "Prediction":
        """With what belongs to a task alone."""
        kept = {
            "panoptic": ("panoptic", "segments"),
            "instance": ("instances",),
            "semantic": ("semantic", "confidence"),
        }[task]
        return Prediction(self.vocabulary, **{name: getattr(self, name) for name in kept})

    def resized(self, height: int, width: int) -> "Prediction":
        """The same for the image in another size: masks and maps take the nearest pixel."""
        shapes = [
            *([] if self.instances is None else [self.instances.image_size]),
            *(
                tuple(values.shape)
                for values in (self.semantic, self.panoptic)
                if values is not None
            ),
        ]
        if all(shape == (height, width) for shape in shapes):
            return self
        nearest = functools.partial(_nearest, height=height, width=width)
        maps = {name: getattr(self, name) for name in ("semantic", "confidence", "panoptic")}
        changed: dict[str, Any] = {k: nearest(v) for k, v in maps.items() if v is not None}
        if self.instances is not None:
            changed["instances"] = _resized_instances(self.instances, height, width)
        if self.panoptic is not None:
            panoptic = changed["panoptic"]
            changed["segments"] = tuple(
                {**s, "area": int((panoptic == s["id"]).sum())} if "area" in s else s
                for s in self.segments
            )
        return replace(self, **changed)

    def only(self, labels: Sequence[str]) -> "Prediction":
        """Without what is of another category: that becomes none of these.

        So words may be looked for that merely compete, such as "background" or "wall". Vocabulary,
        class indices and confidence stay as they are.

        Args:
            labels: of the categories to keep.

        Raises:
            VocabularyError: a label that is not in the vocabulary.
        """
        kept = [self.vocabulary.index(label) for label in labels]
        among = torch.tensor(kept, dtype=torch.int64)
        changed: dict[str, Any] = {}
        if self.instances is not None:
            changed["instances"] = self.instances[torch.isin(self.instances.pred_classes, among)]
        if self.semantic is not None:
            others = torch.isin(self.semantic, among, invert=True)
            changed["semantic"] = self.semantic.masked_fill(others, NONE)
        changed.update(self._panoptic(lambda s: s["category_id"] in kept))
        return replace(self, **changed)

    def _panoptic(self, keep: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What changes if only some of the segments stay, and the pixels of others become 0."""
        if self.panoptic is None:
            return {}
        dropped = [s["id"] for s in self.segments if not keep(s)]
        gone = torch.isin(self.panoptic, torch.tensor(dropped, dtype=self.panoptic.dtype))
        return {
            "panoptic": self.panoptic.masked_fill(gone, 0),
            "segments": tuple(s for s in self.segments if keep(s)),
        }

    def segment_masks(self) -> tuple[Tensor, tuple[dict[str, Any], ...]]:
        """The parts of the image: the panoptic segments, or else the classes of its pixels.

        Returns:
            R masks (R, H, W) bool, and what each of them is: "category_id", "label", "isthing"
            and, of things in a panoptic result, "score".

        Raises:
            ValueError: the model tells neither.
        """
        if self.panoptic is not None:
            ids = torch.tensor([s["id"] for s in self.segments], dtype=self.panoptic.dtype)
            return self.panoptic == ids[:, None, None], self.segments
        if self.semantic is None:
            raise ValueError("the model gives detections, and no segments")
        found = self.semantic.unique()
        found = found[found != NONE]
        labels, kinds = self.vocabulary.labels, self.vocabulary.kinds
        return self.semantic == found[:, None, None], tuple(
            {"category_id": i, "label": labels[i], "isthing": kinds[i] == "thing"}
            for i in found.tolist()
        )


def _nearest(values: Tensor, height: int, width: int) -> Tensor:
    """[..., h, w] to [..., height, width]."""
    rows, columns = (
        (torch.arange(new) * 2 + 1).mul(old).div(2 * new, rounding_mode="floor")  # of centres
        for new, old in ((height, values.shape[-2]), (width, values.shape[-1]))
    )
    return values[..., rows, :][..., columns]


def _resized_instances(instances: Instances, height: int, width: int) -> Instances:
    """Instances in an image of another size."""
    old_height, old_width = instances.image_size
    fields = dict(instances.get_fields())
    boxes = Boxes(fields["pred_boxes"].tensor.clone())
    boxes.scale(width / old_width, height / old_height)
    boxes.clip((height, width))
    fields["pred_boxes"] = boxes
    if "pred_masks" in fields:
        fields["pred_masks"] = _nearest(fields["pred_masks"], height, width)
    return Instances((height, width), **fields)
