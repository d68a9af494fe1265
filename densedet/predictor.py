"""From a config, weights, a picture and a list of words to labelled detections."""

import os
from typing import Any

import torch
from detectron2.data import transforms as T
from detectron2.modeling import SemanticSegmentor
from detectron2.structures import BoxMode, Instances
from numpy.typing import NDArray
from omegaconf import DictConfig
from pycocotools import mask as mask_util

from densedet import compat
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build, load_config
from densedet.engine.launch import resolve_device
from densedet.errors import ConfigError
from densedet.vocabulary import Vocabulary
from densedet.vocabulary.vocabulary import VocabularyLike


class Predictor:
    """Detects the categories of a vocabulary in pictures.

    Args:
        config: a config, or its path as `load_config` takes it.
        weights: checkpoint; None takes ``model_final.pth`` of the config's output folder.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        ConfigError: the config has no model with a vocabulary or one that does not detect, or no
            trained weights are there.
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
        path = os.fspath(weights or os.path.join(cfg.train.output_dir, "model_final.pth"))
        if not os.path.isfile(path):
            raise ConfigError(
                f"weights {path} do not exist; train with tools/lazyconfig_train_net.py, "
                "or name a checkpoint"
            )
        self.model = build(cfg.model, "model").eval()
        if not hasattr(self.model, "set_vocabulary"):
            raise ConfigError(f"{type(self.model).__name__} has no vocabulary to change")
        if isinstance(self.model, SemanticSegmentor):
            raise ConfigError(
                f"{type(self.model).__name__} is no detector, and the predictor shows detectors so "
                "far; tools/lazyconfig_train_net.py --eval-only evaluates segmentors"
            )
        Checkpointer(self.model).load(path, checkpointables=[])
        self.model.to(resolve_device(device))
        self.trained = self.model.vocabulary
        mapper = build(cfg.dataloader.test.mapper, "dataloader.test.mapper")
        self._augmentations = mapper.augmentations

    @property
    def vocabulary(self) -> Vocabulary:
        """The categories that are detected."""
        return self.model.vocabulary

    def set_vocabulary(self, vocabulary: VocabularyLike) -> None:
        """Detect these categories from now on.

        A category counts as seen if training had labels of one of its synonyms; that decides how
        its scores are ensembled.
        """
        words = Vocabulary.resolve(vocabulary)
        seen = {synonym for c in self.trained if c.seen for synonym in (c.label, *c.synonyms)}
        unseen = [c.label for c in words if seen.isdisjoint((c.label, *c.synonyms))]
        self.model.set_vocabulary(words.with_unseen(unseen))

    @torch.inference_mode()
    def predict(self, image: NDArray[Any]) -> Instances:
        """Detect in one picture.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            Detectron2 instances on the CPU, in pixels of ``image``: ``pred_boxes``, ``scores``,
            ``pred_classes`` (indices into the vocabulary) and, for models with masks,
            ``pred_masks``.
        """
        height, width = image.shape[:2]
        augmented = T.AugInput(image)
        self._augmentations(augmented)
        tensor = torch.as_tensor(augmented.image.transpose(2, 0, 1).copy())
        outputs = self.model([{"image": tensor, "height": height, "width": width}])
        return outputs[0]["instances"].to("cpu")


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
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": category + 1,
            "label": vocabulary.labels[category],
            "bbox": [round(value, 2) for value in box],
            "score": round(score, 5),
        }
        if instances.has("pred_masks"):
            mask = instances.pred_masks[row].numpy().astype("uint8", order="F")
            rle = mask_util.encode(mask)
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        results.append(result)
    return results
