"""Semantic segmentation by windows, on a backbone with or without guidance."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.structures import ImageList
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling.backbone.guided import GuidedBackbone, find_guided
from densedet.modeling.backbone.statistics import fill_statistics
from densedet.modeling.checks import check_choice
from densedet.modeling.meta_arch.guided import check_labels, check_num_classes
from densedet.modeling.pixel_scores import PixelScores
from densedet.modeling.sliding_window import check_optional_windows, slide
from densedet.modeling.test_time_augmentation import Segment
from densedet.vocabulary import Vocabulary

Source = Literal["head", "scores"]


@META_ARCH_REGISTRY.register()
class Segmentor(SemanticSegmentor):
    """`SemanticSegmentor` that trains on crops and looks at pictures through windows.

    With a `GuidedBackbone` below the FPN it is DenseCLIP (arXiv 2112.01518), and the losses of the
    guidance come beside that of the head; without it, a plain Semantic FPN.

    Args:
        backbone: levels for the head.
        sem_seg_head: `densedet.modeling.sem_seg_head.SegmentationHead` or Detectron2's own.
        vocabulary: the categories; None takes those of the guidance.
        pixel_mean, pixel_std: of RGB in 0..255; None takes the statistics that belong to the
            weights of the backbone.
        window: side of the windows in evaluation, and what training images are padded to at least,
            pixels; None for whole pictures.
        window_stride: from window to window, pixels; None without windows.
        tta: `densedet.modeling.test_time_augmentation.SemanticTTA`, or another function of a
            function that segments one image, and of the record; None segments once.
        predict_from: in evaluation the logits of the "head", or the "scores" of the guidance over
            its temperature. Those follow any vocabulary, and neck and head do not run.

    Raises:
        ConfigError: windows that leave gaps or lack their stride, no vocabulary or two different
            ones, "scores" without guidance, or a head of another number of classes.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: SemSegFPNHead,
        vocabulary: Vocabulary | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        window: int | None,
        window_stride: int | None,
        tta: Callable[[Segment, dict[str, Any]], PixelScores] | None = None,
        predict_from: Source = "head",
    ) -> None:
        mean, std = fill_statistics(backbone, pixel_mean, pixel_std)
        super().__init__(
            backbone=backbone, sem_seg_head=sem_seg_head, pixel_mean=mean, pixel_std=std
        )
        check_optional_windows(window, window_stride)
        self.window = window
        self.window_stride = window_stride
        self.tta = tta
        self.predict_from = predict_from
        self._vocabulary = self._find_vocabulary(vocabulary)
        check_num_classes(self._vocabulary, sem_seg_head.predictor.out_channels)

    def _find_vocabulary(self, vocabulary: Vocabulary | None) -> Vocabulary:
        guided = self.guided
        check_choice("predict_from", self.predict_from, Source)
        if guided is None:
            if vocabulary is None or self.predict_from == "scores":
                raise ConfigError(
                    "the backbone has no guidance: give the vocabulary, and predict from the head"
                )
            return vocabulary
        own = guided.guidance.vocabulary
        if vocabulary is not None and vocabulary != own:
            raise ConfigError(
                "the vocabulary is not that of the guidance; leave model.vocabulary out"
            )
        return own

    @property
    def guided(self) -> GuidedBackbone | None:
        """The guided backbone, for its score map or its vocabulary; None without guidance."""
        return find_guided(self.backbone)

    @property
    def vocabulary(self) -> Vocabulary:
        """The categories that the channels of the result belong to."""
        if self.predict_from == "scores" and self.guided is not None:
            return self.guided.guidance.vocabulary
        return self._vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Segment these categories from now on; no weight changes.

        From the "scores" they may be any. From the "head" they are the labels of the training, in
        its order; synonyms may be others.

        Raises:
            VocabularyError: other labels for the "head", which needs retraining.
        """
        guided = self.guided
        if self.predict_from == "head":
            self._check(vocabulary)
        if guided is not None and vocabulary != guided.guidance.vocabulary:
            guided.guidance.set_vocabulary(vocabulary)
        if self.predict_from == "head":  # last: the guidance may refuse a name
            self._vocabulary = vocabulary

    def _check(self, vocabulary: Vocabulary) -> None:
        check_labels(
            self._vocabulary,
            vocabulary,
            "the classifier holds" if self.guided is None else "the FPN and the classifier hold",
            'only the score map of a guidance follows any vocabulary: predict_from="scores"',
        )

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, segmentations in evaluation.

        Args:
            batched_inputs: for each image a dict with "image" ``[3, H, W]`` RGB in 0..255; in
                training "sem_seg" ``[H, W]`` int64; in evaluation "height" and "width" of the
                result, if they are not those of the image.

        Returns:
            A dict of scalars; or for each image ``{"sem_seg": scores}``: `PixelScores`
            ``[K, height, width]`` of logits, with ``tta`` of probabilities.

        Raises:
            VocabularyError: the guidance was given other labels than those of the training, which
                the head needs.
        """
        if self.guided is not None and (self.training or self.predict_from == "head"):
            self._check(self.guided.guidance.vocabulary)
        if self.training:
            return self._losses(batched_inputs)
        return [{"sem_seg": self._segment(record)} for record in batched_inputs]

    def _losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = self._batch([self._normalise(x["image"]) for x in batched_inputs], 0.0)
        labels = [x["sem_seg"].to(self.device) for x in batched_inputs]
        targets = self._batch(labels, self.sem_seg_head.ignore_value)
        guided = self.guided
        if guided is None:
            return self.sem_seg_head(self.backbone(images), targets)[1]
        with guided.recording() as record:
            features = self.backbone(images)
        losses = self.sem_seg_head(features, targets)[1]
        return losses | guided.guidance.losses(record[0], targets)

    def _normalise(self, image: Tensor) -> Tensor:
        return (image.to(self.device) - self.pixel_mean) / self.pixel_std

    def _batch(self, tensors: list[Tensor], value: float) -> Tensor:
        """Pad at the right and the bottom, at least to the window."""
        padded = [_pad(tensor, self.window or 0, value) for tensor in tensors]
        divisibility = self.backbone.size_divisibility
        constraints = self.backbone.padding_constraints
        return ImageList.from_tensors(padded, divisibility, value, constraints).tensor

    def _segment(self, record: dict[str, Any]) -> PixelScores:
        height, width = record["image"].shape[-2:]
        size = (record.get("height", height), record.get("width", width))

        def segment(image: Tensor) -> PixelScores:
            divisor = self.backbone.size_divisibility or 1
            pixels = self._normalise(image)
            scores = slide(pixels, self._predict, self.window, self.window_stride, divisor)
            return scores.resized(size)

        return segment(record["image"]) if self.tta is None else self.tta(segment, record)

    def _predict(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if self.predict_from == "scores":
            guided = cast(GuidedBackbone, self.guided)
            logits = guided.guide(images).scores / guided.guidance.temperature
            return logits, (images.shape[-2], images.shape[-1])
        logits = self.sem_seg_head.layers(self.backbone(images))
        stride = self.sem_seg_head.common_stride
        return logits, (round(stride * logits.shape[-2]), round(stride * logits.shape[-1]))


def _pad(tensor: Tensor, side: int, value: float) -> Tensor:
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (0, max(0, side - width), 0, max(0, side - height)), value=value)
