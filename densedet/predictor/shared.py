"""A model that several predictors and threads ask at the same time, each for its own words."""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import Tensor, nn

from densedet.clip import ClassEmbeddings, ClipVisual
from densedet.engine.launch import resolve_device
from densedet.engine.options import PRECISIONS
from densedet.engine.precision import warn_if_slow
from densedet.errors import ConfigError
from densedet.modeling.detection_limits import DetectionLimits, limited, replaced
from densedet.predictor.encoder import ImageEncoder
from densedet.predictor.images import MAX_PIXELS, MAX_TOKENS, ImageMemory, PreparedImage, prepare
from densedet.predictor.prediction import Prediction, Task
from densedet.vocabulary import Vocabulary

_IMAGES_KEPT = 4
_VOCABULARIES_KEPT = 8


@dataclass(frozen=True)
class Wanted:
    """What a call is to tell, all or a part of it.

    Attributes:
        limits: of detections.
        least_confidence: of the class of a pixel.
        task: one of the model's, or None for all.
    """

    limits: DetectionLimits
    least_confidence: float = 0.0
    task: Task | None = None


class SharedModel:
    """Answers one call at a time, each with the vocabulary that comes with it.

    Args:
        model: with a vocabulary; it is moved to the device and set to evaluation.
        augmentations: of the evaluation.
        device: see `resolve_device`.
        precision: of the image encoder: "fp32", "bf16" or "fp16".
        max_pixels: that the model sees of an image; None for a bound that fits the model.

    Raises:
        ConfigError: no such device, an unknown precision, fp16 without CUDA, or no pixels.
    """

    def __init__(
        self,
        model: Any,
        augmentations: T.AugmentationList,
        device: str,
        precision: str,
        max_pixels: int | None = None,
    ) -> None:
        if max_pixels is not None and max_pixels < 1:
            raise ConfigError(f"max_pixels={max_pixels}: give a number of pixels above 0")
        self.device = resolve_device(device, "device")
        _check_precision(precision, self.device)
        self.model = model.eval().to(self.device)
        self.trained: Vocabulary = model.vocabulary
        self._augmentations = augmentations
        self._max_pixels = max_pixels or _fitting_pixels(model)
        self._encoder = ImageEncoder(model, PRECISIONS[precision])
        self._memory = ImageMemory(_IMAGES_KEPT)
        self._lock = threading.RLock()
        self._embed = None
        if hasattr(model, "embedder"):
            self._embed = functools.lru_cache(_VOCABULARIES_KEPT)(model.embedder)

    def check(self, vocabulary: Vocabulary) -> None:
        """Raise VocabularyError if the model cannot be asked for this vocabulary."""
        with self._asked_for(vocabulary):
            pass

    def image(self, pixels: NDArray[Any]) -> PreparedImage:
        """The image (H, W, 3), with what is known of it."""
        with self._lock:
            return self._memory.get(pixels, self._augmentations, self._max_pixels)

    def predict(self, image: PreparedImage, vocabulary: Vocabulary, wanted: Wanted) -> Prediction:
        """Look at one image, and remember its features; see `Predictor.predict`."""
        with self._asked_for(vocabulary), self._encoder.remembering(True):
            return self._predictions([image], vocabulary, wanted)[0]

    def predict_batch(
        self, arrays: Sequence[NDArray[Any]], vocabulary: Vocabulary, wanted: Wanted
    ) -> list[Prediction]:
        """Look at images at once, those of one size together, without remembering them.

        Images of several sizes would be padded to the largest, which changes what is found.
        """
        images = [prepare(pixels, self._augmentations, self._max_pixels) for pixels in arrays]
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(images):
            groups.setdefault(tuple(image.tensor.shape), []).append(row)
        found: dict[int, Prediction] = {}
        for rows in groups.values():
            with self._asked_for(vocabulary), self._encoder.remembering(False):
                some = self._predictions([images[row] for row in rows], vocabulary, wanted)
            found.update(zip(rows, some, strict=True))
        return [found[row] for row in range(len(images))]

    def dense_map(self, image: PreparedImage) -> tuple[Tensor, float]:
        """See `ImageEncoder.dense_map`."""
        with self._lock, torch.no_grad():
            return self._encoder.dense_map(image)

    def embed(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        """A vocabulary in the space of the dense map, on the CPU.

        Raises:
            ConfigError: the model's words go through learned prompts, which fit its heads alone.
        """
        if self._embed is None:
            raise ConfigError(
                f"{type(self.model).__name__} embeds words with learned prompts for its own heads; "
                "take a model with an embedder"
            )
        with self._lock:
            return self._embed(vocabulary).to("cpu")

    @contextmanager
    def _asked_for(self, vocabulary: Vocabulary) -> Iterator[None]:
        """Let the model have a vocabulary, and this thread the model."""
        with self._lock, torch.no_grad():
            if self.model.vocabulary is not vocabulary:
                self.model.set_vocabulary(vocabulary)
            if self._embed is None:
                yield
            else:
                with replaced(self.model, "embedder", self._embed):
                    yield

    def _predictions(
        self,
        images: Sequence[PreparedImage],
        vocabulary: Vocabulary,
        wanted: Wanted,
    ) -> list[Prediction]:
        """In the pixels of the images, however large; what is not wanted is never so large."""
        with limited(self.model, wanted.limits):
            outputs = self.model([image.record for image in images])
        found = [Prediction.of(output, vocabulary) for output in outputs]
        if wanted.task is not None:
            found = [prediction.telling(wanted.task) for prediction in found]
        least = wanted.limits.least_score
        found = [prediction.without(least, wanted.least_confidence) for prediction in found]
        return [
            prediction.resized(*image.size) for prediction, image in zip(found, images, strict=True)
        ]


def _fitting_pixels(model: nn.Module) -> int:
    """How many pixels of an image a model is to see."""
    towers = (module for module in model.modules() if isinstance(module, ClipVisual))
    return min([MAX_PIXELS, *(MAX_TOKENS * tower.stride**2 for tower in towers)])


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs CUDA, the device is {device.type}; use bf16")
    warn_if_slow(PRECISIONS[precision], device)
