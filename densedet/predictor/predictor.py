"""From a model, an image and a list of words to labelled detections, segments and embeddings."""

import copy
import itertools
import os
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, RetinaNet
from detectron2.structures import Boxes
from numpy.typing import NDArray
from torch import Tensor, nn

from densedet import compat
from densedet.errors import ImageError
from densedet.modeling.detection_limits import DetectionLimits
from densedet.predictor.images import ImageLike, PreparedImage, as_pixels
from densedet.predictor.prediction import Prediction, Task
from densedet.predictor.regions import box_embeddings, map_on_picture, mask_embeddings
from densedet.predictor.shared import SharedModel, Wanted
from densedet.predictor.sources import Source, load_source
from densedet.vocabulary import Vocabulary
from densedet.vocabulary.vocabulary import VocabularyLike

_BATCH = 8

LEAST_SCORE = 0.05
"""Of a detection, where a caller names none."""


class Predictor:
    """Finds the categories of a vocabulary in images.

    The vocabulary and the image are set independently: other words on a known image cost no
    pass of the image encoder, another image none of the text tower. The last few images stay
    known, by their content.

    Threads may share a predictor; a call takes the vocabulary and the image that are set when it
    begins. To set and then to predict are two calls, and another thread may set something between
    them: ``with_vocabulary(words).predict(image)`` is one step. A thread with words or images of
    its own keeps such a view.

    Args:
        config: a config; its path or name as `load_config` takes it; a saved model as `open_model`
            takes it; or a short name of `densedet.model_zoo`, such as "quickstart", the detector
            that ``make demo`` trains. A short name is never a folder: that is "./quickstart".
        weights: checkpoint; None takes ``model_final.pth`` of the config's output folder, or none
            for a model that has nothing to train.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        precision: of the image encoder: "fp32", "bf16" or, on CUDA, "fp16". The heads have fp32.
        max_pixels: the most that the model sees of an image, after the resizing of its evaluation.
            A larger image is made smaller for it. Results are in pixels of the image; where that
            has more, masks and maps take the nearest pixel. None takes 2,097,152, or what gives an
            image tower 6,400 cells (409,600 pixels for the quickstart models).

    Attributes:
        config: of the model.

    Raises:
        ConfigError: the config has no model with a vocabulary, no trained weights are there, or
            no such device or precision, or no pixels.
        CheckpointError: the weights do not fit, or are not trained yet.
    """

    def __init__(
        self,
        config: Source = "quickstart",
        weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: str = "fp32",
        max_pixels: int | None = None,
    ) -> None:
        compat.apply()
        source = load_source(config, weights)
        self.config = source.config
        self._shared = SharedModel(
            source.model, source.augmentations, device, precision, max_pixels
        )
        self._vocabulary = source.vocabulary
        self._image: PreparedImage | None = None

    @property
    def model(self) -> nn.Module:
        """The model; other threads and views use it too."""
        return self._shared.model

    @property
    def trained(self) -> Vocabulary:
        """The categories of the training."""
        return self._shared.trained

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What predictions have, the most telling first."""
        if isinstance(self.model, PanopticFPN):
            return "panoptic", "instance", "semantic"
        return (
            ("instance",) if isinstance(self.model, GeneralizedRCNN | RetinaNet) else ("semantic",)
        )

    @property
    def vocabulary(self) -> Vocabulary:
        """The categories that are looked for."""
        return self._vocabulary

    def set_vocabulary(self, words: VocabularyLike) -> None:
        """Look for these categories from now on.

        A category counts as seen if training had labels of one of its names; that decides how its
        scores are ensembled.

        Where threads share the predictor, what is predicted next may be of another thread's words;
        ``with_vocabulary(words).predict(image)`` is not.

        Args:
            words: as of `Vocabulary.resolve`, e.g. ``"cat,kitten;remote control"`` or a list.

        Raises:
            VocabularyError: no vocabulary, or none that the model can be asked for.
        """
        vocabulary = Vocabulary.resolve(words).seen_by(self.trained)
        self._shared.check(vocabulary)
        self._vocabulary = vocabulary

    def with_vocabulary(self, words: VocabularyLike) -> "Predictor":
        """A predictor with other words, and then another image, on the same model.

        It shares the weights and the known images, and costs no memory. Several threads may each
        use one of their own.
        """
        view = copy.copy(self)
        view.set_vocabulary(words)
        return view

    def set_image(self, image: ImageLike) -> None:
        """Look at this image from now on; it is encoded at the first question, once.

        Args:
            image: (H, W, 3) uint8 RGB array, Pillow image, or a file.

        Raises:
            ImageError: it is none of these.
        """
        self._image = self._shared.image(as_pixels(image))

    def predict(
        self,
        image: ImageLike | None = None,
        least_score: float | None = None,
        task: Task | None = None,
        *,
        top_k: int | None = None,
        agnostic_nms: bool = False,
    ) -> Prediction:
        """Look for the vocabulary, the one that is set when the call begins.

        Between `set_vocabulary` and this call another thread may set other words; the result's
        ``vocabulary`` tells. ``with_vocabulary(words).predict(image)`` is one step.

        Args:
            image: None takes the one that was set.
            least_score: as of `Prediction.above`, in place of the threshold of the config; a
                detection below it costs no mask. None stands for 0.05 of detections, and keeps the
                class of every pixel, however uncertain.
            task: one of `tasks`, to have that alone; the rest is never in the size of a large
                image.
            top_k: the most detections in the image, before a panoptic result is made of them;
                None takes the number of the config.
            agnostic_nms: of detections that overlap the best is kept, whatever their classes are;
                otherwise a region may be reported once for each of several words.

        Raises:
            ImageError: no image is set, or this is none.
            ValueError: a score outside 0..1, or ``top_k`` below 1.
        """
        vocabulary = self._vocabulary  # before the image is read, which takes time
        wanted = _wanted(least_score, task, top_k, agnostic_nms)
        return self._shared.predict(self._known(image), vocabulary, wanted)

    def predict_batch(
        self,
        images: Iterable[ImageLike],
        least_score: float | None = None,
        task: Task | None = None,
        *,
        top_k: int | None = None,
        agnostic_nms: bool = False,
    ) -> list[Prediction]:
        """Look for the vocabulary in images of any sizes, some at a time, in their order.

        Args:
            images: of them, some are in memory at a time.
            least_score, task, top_k, agnostic_nms: as of `predict`.

        Raises:
            ImageError: one of them is no image; the message has its number, counted from 0.
            ValueError: as of `predict`.
        """
        vocabulary, rest = self._vocabulary, enumerate(images)
        wanted = _wanted(least_score, task, top_k, agnostic_nms)
        found: list[Prediction] = []
        while some := [_numbered(*pair) for pair in itertools.islice(rest, _BATCH)]:
            found += self._shared.predict_batch(some, vocabulary, wanted)
        return found

    def dense_features(self, image: ImageLike | None = None) -> Tensor:
        """The dense map: an embedding, in the space of words, for each cell of the image.

        Returns:
            [D, h, w] fp32 on the CPU, unit columns. The last row and column may hang over the
            image's border.

        Raises:
            ConfigError: the model has no such map.
            ImageError: as of `predict`.
        """
        known = self._known(image)
        dense, stride = self._shared.dense_map(known)
        height, width = (-int(-side // stride) for side in known.tensor.shape[1:])
        return dense[:, :height, :width].cpu().clone()

    def region_features(
        self,
        boxes: Tensor | Boxes | None = None,
        masks: Tensor | None = None,
        image: ImageLike | None = None,
    ) -> Tensor:
        """The dense map, pooled over regions.

        Args:
            boxes: [R, 4], (x0, y0, x1, y1) in pixels of the image, of which the part inside
                counts; a tensor, nested lists, or Detectron2's Boxes; or else
            masks: [R, H, W] bool.
            image: as of `predict`.

        Returns:
            [R, D] fp32 on the CPU, unit rows.

        Raises:
            ValueError: neither or both are given, of another shape, or a region is empty.
            ConfigError: as of `dense_features`.
        """
        known = self._known(image)
        if (boxes is None) == (masks is None):
            raise ValueError("give either boxes or masks")
        dense, stride = self._shared.dense_map(known)
        if boxes is not None:
            corners = boxes.tensor if isinstance(boxes, Boxes) else torch.as_tensor(boxes)
            pooled = box_embeddings(dense, stride, known, corners)
        else:
            pooled = mask_embeddings(dense, stride, known, torch.as_tensor(masks))
        return F.normalize(pooled, dim=1).cpu()

    def embed_text(self, words: VocabularyLike) -> Tensor:
        """Words in the space of the dense map.

        Returns:
            [P, D] fp32 on the CPU, a unit row for each of ``Vocabulary.resolve(words).synonyms``;
            its ``groups`` say which category each of them is of.

        Raises:
            VocabularyError: as of `Vocabulary.resolve`.
            ConfigError: the model has learned prompts instead of sentences.
        """
        return self._shared.embed(Vocabulary.resolve(words)).vectors.clone()

    def similarity(self, phrase: str, image: ImageLike | None = None) -> Tensor:
        """How close a phrase is to each pixel; the phrase is prompted as one name, "," included.

        Returns:
            [H, W] fp32 cosines on the CPU: of the cells of the dense map, interpolated.

        Raises:
            VocabularyError: an empty phrase.
            ConfigError: as of `dense_features` and `embed_text`.
        """
        known = self._known(image)  # before the words, which take time
        vector = self.embed_text([phrase])[0]
        dense, stride = self._shared.dense_map(known)
        cosines = torch.einsum("dhw,d->hw", dense, vector.to(dense))
        return map_on_picture(cosines, stride, known).cpu()

    def _known(self, image: ImageLike | None) -> PreparedImage:
        if image is not None:
            return self._shared.image(as_pixels(image))
        if self._image is None:
            raise ImageError("no image is set: call set_image first, or give one")
        return self._image


def _wanted(
    least_score: float | None, task: Task | None, top_k: int | None, agnostic_nms: bool
) -> Wanted:
    least = LEAST_SCORE if least_score is None else least_score
    return Wanted(DetectionLimits(least, top_k, agnostic_nms), least_score or 0.0, task)


def _numbered(number: int, image: ImageLike) -> NDArray[np.uint8]:
    """The pixels of an image of a batch; an error says which it is."""
    try:
        return as_pixels(image)
    except ImageError as error:
        raise ImageError(f"image {number}: {error}") from error
