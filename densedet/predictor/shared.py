"""A model that several predictors and threads ask at the same time, each for its own words."""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import Tensor

from densedet.clip import ClassEmbeddings
from densedet.engine.launch import resolve_device
from densedet.engine.options import PRECISIONS
from densedet.errors import ConfigError
from densedet.predictor.encoder import ImageEncoder, replaced
from densedet.predictor.images import ImageMemory, PreparedImage, prepare
from densedet.predictor.prediction import Prediction
from densedet.vocabulary import Vocabulary

_IMAGES_KEPT = 4
_VOCABULARIES_KEPT = 8


class SharedModel:
    """Answers one call at a time, each with the vocabulary that comes with it.

    Args:
        model: with a vocabulary; it is moved to the device and set to evaluation.
        augmentations: of the evaluation.
        device: see `resolve_device`.
        precision: of the image encoder: "fp32", "bf16" or "fp16".

    Raises:
        ConfigError: no such device, an unknown precision, or fp16 without CUDA.
    """

    def __init__(
        self, model: Any, augmentations: T.AugmentationList, device: str, precision: str
    ) -> None:
        self.device = resolve_device(device, "device")
        _check_precision(precision, self.device)
        self.model = model.eval().to(self.device)
        self.trained: Vocabulary = model.vocabulary
        self._augmentations = augmentations
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
        """The picture (H, W, 3), with what is known of it."""
        with self._lock:
            return self._memory.get(pixels, self._augmentations)

    def predict(self, image: PreparedImage, vocabulary: Vocabulary) -> Prediction:
        """Look at one picture, and remember its features."""
        with self._asked_for(vocabulary), self._encoder.remembering(image.kept):
            return self._predictions([image], vocabulary)[0]

    def predict_batch(
        self, pictures: Sequence[NDArray[Any]], vocabulary: Vocabulary
    ) -> list[Prediction]:
        """Look at pictures at once, those of one size together, without remembering them.

        Pictures of several sizes would be padded to the largest, which changes what is found.
        """
        images = [prepare(pixels, self._augmentations) for pixels in pictures]
        groups: dict[tuple[int, ...], list[int]] = {}
        for row, image in enumerate(images):
            groups.setdefault(tuple(image.tensor.shape), []).append(row)
        found: dict[int, Prediction] = {}
        for rows in groups.values():
            with self._asked_for(vocabulary), self._encoder.remembering(None):
                some = self._predictions([images[row] for row in rows], vocabulary)
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
        self, images: Sequence[PreparedImage], vocabulary: Vocabulary
    ) -> list[Prediction]:
        outputs = self.model([image.record for image in images])
        return [Prediction.of(output, vocabulary) for output in outputs]


def _check_precision(precision: str, device: torch.device) -> None:
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r}: choose from {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type != "cuda":
        raise ConfigError(f"precision fp16 needs CUDA, the device is {device.type}; use bf16")
