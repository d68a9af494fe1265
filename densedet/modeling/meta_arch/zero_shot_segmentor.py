"""Semantic segmentation straight from the dense map of CLIP, without any training."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from densedet.clip import ClassEmbeddings, ClipVisual
from densedet.clip.visual import DensePath
from densedet.errors import ConfigError
from densedet.modeling.backbone.statistics import fill_statistics
from densedet.modeling.meta_arch.open_vocabulary import OpenVocabularyModel
from densedet.modeling.pixel_scores import PixelScores
from densedet.modeling.roi_heads import CosineClassifier
from densedet.modeling.sliding_window import check_optional_windows, slide


@META_ARCH_REGISTRY.register()
class ZeroShotSegmentor(OpenVocabularyModel):
    """Compares every location of the dense map with a vocabulary (MaskCLIP, arXiv 2112.01071).

    The logits are the cosines times the temperature, resized bilinearly. Nothing is learned, so a
    CLIP segments as it is, and one that CLIPSelf (arXiv 2310.01403) distilled as well.

    Args:
        visual: the tower; it is frozen.
        window: side of the windows, pixels; None for whole pictures.
        window_stride: from window to window, pixels; None without windows.
        path: the way through the last block, see `ClipVisual.dense_map`: MaskCLIP keeps residual
            and MLP ("value"), later works drop them ("values").
        temperature: factor of the cosines; 100 is CLIP's own.
        min_probability: prompt denoising of MaskCLIP: a class that is not as probable as this
            anywhere in the picture is removed from it (0.5 there); the most probable class always
            stays. None keeps all.
        pixel_mean, pixel_std: of RGB in 0..255; None takes the statistics that belong to the
            weights of the tower.
        **kwargs: as of `OpenVocabularyModel`.

    Raises:
        ConfigError: windows that leave gaps or lack their stride, an unknown path, or a
            ``min_probability`` outside 0..1.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        visual: ClipVisual,
        window: int | None,
        window_stride: int | None,
        path: DensePath = "value",
        temperature: float = 100.0,
        min_probability: float | None = None,
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_optional_windows(window, window_stride)
        if path not in get_args(DensePath):
            raise ConfigError(f"path={path!r}: choose from {', '.join(get_args(DensePath))}")
        if min_probability is not None and not 0 <= min_probability <= 1:
            raise ConfigError(f"min_probability={min_probability} must lie in 0..1, or be None")
        self.window, self.window_stride = window, window_stride
        self.path: DensePath = path
        self.min_probability = min_probability
        self.visual = visual
        self.classifier = CosineClassifier(visual.embed_dim, temperature)
        self.requires_grad_(False)
        mean, std = fill_statistics(visual, pixel_mean, pixel_std)
        for name, values in (("pixel_mean", mean), ("pixel_std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.eval()

    def set_classes(self, embeddings: ClassEmbeddings) -> None:
        """Hand the embeddings of the vocabulary to the classifier."""
        self.classifier.set_classes(embeddings, self.vocabulary.seen)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, PixelScores]]:
        """Segment images.

        Args:
            batched_inputs: for each image a dict with "image" ``[3, H, W]`` RGB in 0..255, of any
                size; "height" and "width" of the result, if they are not those of the image.

        Returns:
            For each image ``{"sem_seg": scores}``: `PixelScores` ``[K, height, width]`` of logits,
            without the classes that ``min_probability`` removes.

        Raises:
            ConfigError: the model is in training mode, or the tower has no such ``path``.
        """
        if self.training:
            raise ConfigError(
                f"{type(self).__name__} has nothing to train: evaluate it, with --eval-only or "
                "eval()"
            )
        self._embed_vocabulary()
        with torch.no_grad():
            return [{"sem_seg": self._segment(record)} for record in batched_inputs]

    def _segment(self, record: dict[str, Any]) -> PixelScores:
        image = (record["image"].to(self.device) - self.pixel_mean) / self.pixel_std
        scores = slide(image, self._predict, self.window, self.window_stride, self.visual.stride)
        if self.min_probability is not None:
            best = scores.highest()
            scores = scores.only(best >= best.max().clamp(max=self.min_probability))
        height, width = image.shape[-2:]
        return scores.resized((record.get("height", height), record.get("width", width)))

    def _predict(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        cosines = self.classifier.pixel_cosines(self.visual.dense_map(images, self.path))
        return self.classifier.temperature * cosines, (images.shape[-2], images.shape[-1])
