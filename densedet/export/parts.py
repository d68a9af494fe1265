"""The dense encoder and the semantic models as parts for export."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from detectron2.modeling import SemanticSegmentor
from torch import Tensor, nn

from densedet.clip import ClassEmbeddings, ClipVisual
from densedet.clip.visual import DensePath
from densedet.errors import ConfigError
from densedet.export.copying import traceable_copy
from densedet.export.detector import DetectorPart
from densedet.export.part import ExportPart, Size, left_out, padded_square
from densedet.modeling.backbone import GuidedBackbone, image_statistics
from densedet.modeling.meta_arch import (
    OpenVocabularyPanopticFPN,
    OpenVocabularyRCNN,
    Segmentor,
    ZeroShotSegmentor,
)
from densedet.modeling.meta_arch.open_vocabulary import OpenVocabularyModel
from densedet.modeling.roi_heads import CosineClassifier
from densedet.vocabulary import Vocabulary

KINDS = ("dense", "semantic", "detector")


class DensePart(ExportPart):
    """The dense map of a CLIP tower, and its cosines with the vocabulary.

    Args:
        visual: the tower, a `traceable_copy`.
        embeddings: of the vocabulary, by the text tower of the same CLIP.
        vocabulary: the categories.
        pixel_mean, pixel_std: of RGB in 0..255, those that the model is used with.
        path: the way through the last block, see `ClipVisual.dense_map`.
    """

    kind = "dense"
    outputs = {
        "dense": "[B, D, h, w], a unit vector at each location of h = H / stride, w = W / stride",
        "scores": "[B, K, h, w], cosine of each location with each category",
    }

    def __init__(
        self,
        visual: ClipVisual,
        embeddings: ClassEmbeddings,
        vocabulary: Vocabulary,
        pixel_mean: Sequence[float] | Tensor,
        pixel_std: Sequence[float] | Tensor,
        path: DensePath = "value",
    ) -> None:
        super().__init__(vocabulary, pixel_mean, pixel_std, multiple=visual.stride)
        self.visual = visual
        self.path: DensePath = path
        self.classifier = CosineClassifier(visual.embed_dim)
        self.classifier.set_classes(embeddings, vocabulary.seen)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures to the dense map and the scores."""
        dense = self.visual.dense_map(self.normalise(images), self.path)
        return dense, self.classifier.pixel_cosines(dense)

    def settings(self) -> dict[str, Any]:
        """The stride, the dimension and the path."""
        return {
            "stride": self.visual.stride,
            "embed_dim": self.visual.embed_dim,
            "path": self.path,
        }


class _SemanticPart(ExportPart):
    """Logits of every pixel. Windows are the business of the caller, see ``settings``."""

    kind = "semantic"
    outputs = {"logits": "[B, K, H, W], logits of each category at each pixel"}

    def __init__(self, model: Any, multiple: int) -> None:
        super().__init__(model.vocabulary, model.pixel_mean, model.pixel_std, multiple)
        self.windows = (getattr(model, "window", None), getattr(model, "window_stride", None))
        self.left_out = left_out(model)

    def settings(self) -> dict[str, Any]:
        """The windows that the model looks through in evaluation, null for whole pictures; and
        what it does to the logits of a picture afterwards."""
        window, stride = self.windows
        return {"window": window, "window_stride": stride, "left_out": self.left_out}


class ZeroShotPart(_SemanticPart):
    """A `ZeroShotSegmentor`: cosines of the dense map times the temperature, resized."""

    def __init__(self, model: ZeroShotSegmentor) -> None:
        super().__init__(model, model.visual.stride)
        if model.min_probability is not None:
            raise ConfigError(
                "min_probability removes categories after a look at the whole picture, which the "
                "exported part does not do: set model.min_probability=null"
            )
        self.visual, self.classifier, self.path = model.visual, model.classifier, model.path

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Pictures to logits."""
        dense = self.visual.dense_map(self.normalise(images), self.path)
        logits = self.classifier.temperature * self.classifier.pixel_cosines(dense)
        return (_resize(logits, images),)


class SemanticHeadPart(_SemanticPart):
    """Backbone and semantic head of a `Segmentor` or of an `OpenVocabularyPanopticFPN`."""

    def __init__(self, model: SemanticSegmentor | OpenVocabularyPanopticFPN) -> None:
        super().__init__(model, model.backbone.size_divisibility or 1)
        if isinstance(model, OpenVocabularyPanopticFPN):  # a Segmentor pads in training alone
            self.size = padded_square(model.backbone)
        self.backbone, self.head = model.backbone, model.sem_seg_head

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Pictures to logits."""
        return (self.head(self.backbone(self.normalise(images)))[0],)


class GuidanceScorePart(_SemanticPart):
    """The scores of a guidance over its temperature: a `Segmentor` that predicts from them."""

    def __init__(self, model: Segmentor, guided: GuidedBackbone) -> None:
        super().__init__(model, guided.size_divisibility)
        self.guided = guided

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Pictures to logits."""
        scores = self.guided.guide(self.normalise(images)).scores
        return (_resize(scores / self.guided.guidance.temperature, images),)


def make_part(model: nn.Module, kind: str, size: Size | None = None) -> ExportPart:
    """A part of a model, for its present vocabulary; the model stays as it is.

    Args:
        model: in evaluation mode, on the CPU.
        kind: "dense", "semantic" or "detector".
        size: (H, W) of the pictures; "detector" needs it, the others check it alone. Of a model
            that pads to squares it is that square, also where it is not given.

    Raises:
        ConfigError: the model has no such part, or one that cannot be without its text tower; or
            a size that does not fit.
    """
    if kind not in KINDS:
        raise ConfigError(f"no part {kind!r}; choose from {', '.join(KINDS)}")
    if kind == "detector":
        part = _detector(traceable_copy(model), size)
    else:
        part = (_dense if kind == "dense" else _semantic)(traceable_copy(model))
    if size is not None:
        part.check_size(size)
    return part.eval().requires_grad_(False)


def make_dense_part(
    visual: ClipVisual, embeddings: ClassEmbeddings, vocabulary: Vocabulary
) -> ExportPart:
    """The dense encoder of a bare CLIP tower, which stays as it is.

    Args:
        visual: the tower, e.g. of `densedet.clip.create_visual`.
        embeddings: of the vocabulary, e.g. of `densedet.clip.VocabularyEmbedder`.
        vocabulary: the categories.

    Raises:
        VocabularyError: the embeddings come from another CLIP or another vocabulary.
    """
    mean, std = image_statistics(visual)
    part = DensePart(traceable_copy(visual), embeddings, vocabulary, mean, std)
    return part.eval().requires_grad_(False)


def _dense(model: nn.Module) -> ExportPart:
    visual = next((m for m in model.modules() if isinstance(m, ClipVisual)), None)
    if visual is None or not isinstance(model, OpenVocabularyModel):
        raise ConfigError(
            f"{type(model).__name__} does not compare a dense map of CLIP with class embeddings; "
            'take the part "semantic", or a ZeroShotSegmentor on the weights of the tower'
        )
    path: DensePath = model.path if isinstance(model, ZeroShotSegmentor) else "value"
    words = model.vocabulary
    mean, std = model.get_buffer("pixel_mean"), model.get_buffer("pixel_std")
    part = DensePart(visual, model.embedder(words), words, mean, std, path)
    if isinstance(model, OpenVocabularyRCNN | OpenVocabularyPanopticFPN):  # pad pictures to these
        part.multiple = model.backbone.size_divisibility
        part.size = padded_square(model.backbone)
    return part


def _semantic(model: nn.Module) -> ExportPart:
    if isinstance(model, ZeroShotSegmentor):
        return ZeroShotPart(model)
    if isinstance(model, Segmentor) and model.tta is not None:
        raise ConfigError(
            "tta segments a picture several times, which is the caller's part: set model.tta=null"
        )
    if isinstance(model, Segmentor) and model.predict_from == "scores" and model.guided:
        return GuidanceScorePart(model, model.guided)
    if isinstance(model, Segmentor | OpenVocabularyPanopticFPN):
        return SemanticHeadPart(model)
    raise ConfigError(f"{type(model).__name__} has no semantic part")


def _detector(model: nn.Module, size: Size | None) -> ExportPart:
    if not isinstance(model, OpenVocabularyRCNN):
        raise ConfigError(f"{type(model).__name__} is no OpenVocabularyRCNN, the detector there is")
    if size is None:
        raise ConfigError("the detector is exported for one size of pictures: give it (H, W)")
    return DetectorPart(model, size)


def _resize(logits: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
