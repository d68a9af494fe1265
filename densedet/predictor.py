"""From a config, weights, a picture and a list of words to labelled detections and segments."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data import transforms as T
from detectron2.modeling import GeneralizedRCNN, PanopticFPN
from detectron2.structures import BoxMode, Instances
from numpy.typing import NDArray
from omegaconf import DictConfig
from pycocotools import mask as mask_util
from torch import Tensor

from densedet import compat
from densedet.engine.checkpoint import load_trained
from densedet.engine.config import build, load_config
from densedet.engine.launch import resolve_device
from densedet.errors import ConfigError
from densedet.vocabulary import Vocabulary
from densedet.vocabulary.vocabulary import VocabularyLike


@dataclass(frozen=True)
class Prediction:
    """What a model finds in a picture of H x W pixels, on the CPU; None for what it does not tell.

    Class indices are those of the vocabulary.

    Attributes:
        instances: ``pred_boxes`` in pixels, ``scores``, ``pred_classes`` and, of models with masks,
            ``pred_masks``.
        semantic: (H, W) int64, the class of each pixel.
        panoptic: (H, W) int32, the segment of each pixel, 0 for none.
        segments: of ``panoptic``, each with "id", "category_id" and "isthing", things also with
            "score", stuff with "area" in pixels.
    """

    instances: Instances | None = None
    semantic: Tensor | None = None
    panoptic: Tensor | None = None
    segments: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of(cls, outputs: dict[str, Any]) -> "Prediction":
        """From what a Detectron2 model in evaluation says of one picture."""
        instances, scores = outputs.get("instances"), outputs.get("sem_seg")
        panoptic, segments = outputs.get("panoptic_seg", (None, ()))
        return cls(
            instances=None if instances is None else instances.to("cpu"),
            semantic=None if scores is None else scores.argmax(dim=0).cpu(),
            panoptic=None if panoptic is None else panoptic.cpu(),
            segments=tuple(segments),
        )

    def segment_masks(self, vocabulary: Vocabulary) -> tuple[Tensor, tuple[dict[str, Any], ...]]:
        """The parts of the picture: the panoptic segments, or else the classes of its pixels.

        Returns:
            R masks (R, H, W) bool, and what each of them is: "category_id", "isthing" and, of
            things in a panoptic result, "score".

        Raises:
            ValueError: the model tells neither.
        """
        if self.panoptic is not None:
            ids = torch.tensor([segment["id"] for segment in self.segments])
            return self.panoptic == ids[:, None, None], self.segments
        if self.semantic is None:
            raise ValueError("the model gives detections, and no segments")
        found = self.semantic.unique()
        kinds = vocabulary.kinds
        return self.semantic == found[:, None, None], tuple(
            {"category_id": i, "isthing": kinds[i] == "thing"} for i in found.tolist()
        )


class Predictor:
    """Finds the categories of a vocabulary in pictures.

    Args:
        config: a config, or its path as `load_config` takes it.
        weights: checkpoint; None takes ``model_final.pth`` of the config's output folder, or none
            for a model that has nothing to train.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        ConfigError: the config has no model with a vocabulary, or no trained weights are there.
        CheckpointError: the weights do not fit.
    """

    def __init__(
        self,
        config: DictConfig | str | os.PathLike[str],
        weights: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        compat.apply()
        cfg = config if isinstance(config, DictConfig) else load_config(os.fspath(config))
        self.model = build(cfg.model, "model").eval()
        if not hasattr(self.model, "set_vocabulary"):
            raise ConfigError(f"{type(self.model).__name__} has no vocabulary to change")
        load_trained(self.model, cfg.train.output_dir, weights)
        self.model.to(resolve_device(device))
        self.trained = self.model.vocabulary
        mapper = build(cfg.dataloader.test.mapper, "dataloader.test.mapper")
        self._augmentations = mapper.augmentations

    @property
    def gives_segments(self) -> bool:
        """Whether predictions have segments, and not detections alone."""
        return isinstance(self.model, PanopticFPN) or not isinstance(self.model, GeneralizedRCNN)

    @property
    def vocabulary(self) -> Vocabulary:
        """The categories that are looked for."""
        return self.model.vocabulary

    def set_vocabulary(self, vocabulary: VocabularyLike) -> None:
        """Look for these categories from now on.

        A category counts as seen if training had labels of one of its names; that decides how its
        scores are ensembled.
        """
        self.model.set_vocabulary(Vocabulary.resolve(vocabulary).seen_by(self.trained))

    @torch.inference_mode()
    def predict(self, image: NDArray[Any]) -> Prediction:
        """Look at one picture.

        Args:
            image: (H, W, 3) uint8 RGB.
        """
        height, width = image.shape[:2]
        augmented = T.AugInput(image)
        self._augmentations(augmented)
        tensor = torch.as_tensor(augmented.image.transpose(2, 0, 1).copy())
        outputs = self.model([{"image": tensor, "height": height, "width": width}])
        return Prediction.of(outputs[0])


def coco_results(
    instances: Instances, image_id: int, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """COCO results of one picture, each with the user's label.

    ``category_id`` is the index in the vocabulary plus one.
    """
    boxes = BoxMode.convert(instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    results = []
    for row, (box, score, category) in enumerate(
        zip(boxes.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(), strict=True)
    ):
        result = {
            **_labelled(image_id, category, vocabulary),
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        if instances.has("pred_masks"):
            result["segmentation"] = _run_lengths(instances.pred_masks[row])
        results.append(result)
    return results


def segment_results(
    masks: Tensor, segments: Sequence[dict[str, Any]], image_id: int, vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """Segments of one picture in the manner of COCO results, each with the user's label.

    Args:
        masks: (R, H, W) bool.
        segments: R, see `Prediction.segment_masks`.
    """
    results = []
    for mask, segment in zip(masks, segments, strict=True):
        result = {
            **_labelled(image_id, segment["category_id"], vocabulary),
            "isthing": bool(segment["isthing"]),
            "area": int(mask.sum()),
            "segmentation": _run_lengths(mask),
        }
        if "score" in segment:
            result["score"] = round(float(segment["score"]), 5)
        results.append(result)
    return results


def _labelled(image_id: int, category: int, vocabulary: Vocabulary) -> dict[str, Any]:
    label = vocabulary.labels[category]
    return {"image_id": image_id, "category_id": category + 1, "label": label}


def _run_lengths(mask: Tensor) -> dict[str, Any]:
    """(H, W) to COCO's compressed run lengths."""
    rle = mask_util.encode(mask.numpy().astype("uint8", order="F"))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
