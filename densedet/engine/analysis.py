"""Size of a model and cost of one image, by part, from its config alone: no weights, no computing.

FLOPs are multiply-adds, see :class:`densedet.engine.flops.FlopCounter`. Parameters of the text
tower are set apart, and its cost is not part of an image's where evaluation keeps its output.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, RetinaNet, SemanticSegmentor
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from densedet.clip import ClassEmbeddings, VocabularyEmbedder
from densedet.engine.config import build
from densedet.engine.flops import FlopCounter
from densedet.errors import ConfigError
from densedet.modeling.backbone import DENSE_FEATURE, find_guided
from densedet.modeling.guidance import PromptedTextEncoder
from densedet.modeling.meta_arch import OpenVocabularyRCNN

Size = tuple[int, int]

SEGMENTATION_SIZE: Size = (1024, 1024)
DETECTION_SIZE: Size = (800, 1280)
BOX_REGIONS = 1000
MASK_REGIONS = 100
TEXT_EVERY_IMAGE = "text, every image"
_KINDS = (SemanticSegmentor, RetinaNet, GeneralizedRCNN)


class Part(NamedTuple):
    """Parameters of a part, and FLOPs of one image; None where they were not counted."""

    params: int
    flops: int | None


@dataclass(frozen=True)
class Analysis:
    """What :func:`analyze` finds.

    Attributes:
        size: height and width of the image that the FLOPs are of; None if they were not counted.
        parts: "backbone", "guidance", "neck" and the heads, those that the model has; "text, every
            image", without parameters, if the text tower runs for every image.
        text: the text tower: its parameters, and the FLOPs of one run over the whole vocabulary;
            None for these if it runs for every image.
    """

    size: Size | None
    parts: dict[str, Part]
    text: Part

    @property
    def params_without_text(self) -> int:
        """Parameters of all parts."""
        return sum(part.params for part in self.parts.values())

    @property
    def flops(self) -> int | None:
        """FLOPs of an image in evaluation, with the text only if every image needs its own."""
        counts = [part.flops for part in self.parts.values() if part.flops is not None]
        return sum(counts) if counts else None

    def as_json(self) -> dict[str, Any]:
        """All figures, as they go into a JSON file; "flops_text" is null with text every image."""
        return {
            "params_without_text": self.params_without_text,
            "params_text": self.text.params,
            "flops": self.flops,
            "flops_text": self.text.flops,
            "size": self.size,
            "parts": {name: part._asdict() for name, part in self.parts.items()},
        }


def without_weights(node: Any) -> None:
    """Set every ``pretrained`` below a config node to None, so that nothing is loaded."""
    if isinstance(node, DictConfig):
        for key in list(node):
            if key == "pretrained":
                node[key] = None
            elif not OmegaConf.is_interpolation(node, key):
                without_weights(node[key])
    elif isinstance(node, ListConfig):
        for index in range(len(node)):
            if not OmegaConf.is_interpolation(node, index):
                without_weights(node[index])


def build_without_weights(cfg: DictConfig) -> nn.Module:
    """Build ``cfg.model`` on the meta device, in eval mode; ``cfg`` loses its ``pretrained``.

    Raises:
        ConfigError: the config has no model, or one of a kind that is not known here.
    """
    if "model" not in cfg:
        raise ConfigError("the config has no 'model'")
    target = cfg.model.get("_target_")
    _check_kind(locate(target) if isinstance(target, str) else target)
    without_weights(cfg)
    with torch.device("meta"):
        model: nn.Module = build(cfg.model, "model")
    return model.eval()


def _check_kind(kind: Any) -> None:
    if isinstance(kind, type) and not issubclass(kind, _KINDS):
        names = ", ".join(known.__name__ for known in _KINDS)
        raise ConfigError(
            f"{kind.__name__} is no segmentor or detector: models derived from {names} can be "
            "analysed"
        )


def analyze(model: Any, size: Size | None = None, flops: bool = True) -> Analysis:
    """Count parameters, and the FLOPs of one image.

    Semantic segmentation runs over the whole image at once, up to logits of its size. Of RetinaNet
    count the maps of the head; of R-CNN the head of the RPN, 1000 regions in the box head and 100
    in the mask head; what pools, sorts, suppresses or combines their results does not. Where
    prompts depend on the image, the text tower runs for every image, as a part of its own.

    Args:
        model: of :func:`build_without_weights`.
        size: height and width of the image; by default 1024x1024 for segmentation, the square that
            the backbone pads to if it has one, else 800x1280. Padded as the model does.
        flops: whether to count FLOPs.

    Raises:
        ConfigError: a model of an unknown kind, or an image larger than the backbone's square.
    """
    _check_kind(type(model))
    parts = _modules(model)
    params = _count_parameters(model, parts)
    text = _text_tower(model)
    if not flops:
        counted = {name: Part(count, None) for name, count in params.items()}
        return Analysis(None, counted, Part(_parameters(text), None))
    padded = _padded_size(model.backbone, size or _default_size(model))
    counter = FlopCounter()
    with torch.no_grad(), torch.device("meta"):
        run_text = _prepare_vocabulary(model)
        with counter, counter.modules(parts | _text_of_images(model)):
            _run(model, torch.zeros(1, 3, *padded), counter)
    names = [*params, *(name for name in counter.flops if name not in params)]
    counted = {name: Part(params.get(name, 0), counter.flops[name]) for name in names}
    if TEXT_EVERY_IMAGE in counted:
        run_text = None
    return Analysis(padded, counted, Part(_parameters(text), run_text))


def _modules(model: Any) -> dict[str, list[nn.Module]]:
    """The modules of each part; of nested ones, the inner counts."""
    guided = find_guided(model.backbone)
    trunk = model.backbone if guided is None else guided.trunk
    while hasattr(trunk, "bottom_up"):
        trunk = trunk.bottom_up
    parts: dict[str, list[nn.Module]] = {"backbone": [trunk]}
    if guided is not None:
        parts["guidance"] = [guided.guidance]
    if trunk is not model.backbone:
        parts["neck"] = [model.backbone]
    if isinstance(model, GeneralizedRCNN):
        return parts | _rcnn_heads(model)
    return parts | {"head": [model.head if isinstance(model, RetinaNet) else model.sem_seg_head]}


def _rcnn_heads(model: GeneralizedRCNN) -> dict[str, list[nn.Module]]:
    rpn, heads = model.proposal_generator, model.roi_heads
    if not (isinstance(rpn, RPN) and isinstance(heads, StandardROIHeads)) or heads.keypoint_on:
        raise ConfigError(
            f"{type(rpn).__name__} with {type(heads).__name__}: an RPN with StandardROIHeads for "
            "boxes and masks can be analysed"
        )
    parts = {"rpn": [rpn.rpn_head], "box head": [heads.box_head, heads.box_predictor]}
    if heads.mask_on:
        parts["mask head"] = [heads.mask_head]
    if isinstance(model, PanopticFPN):
        parts["semantic head"] = [model.sem_seg_head]
    return parts


def _count_parameters(model: nn.Module, parts: dict[str, list[nn.Module]]) -> dict[str, int]:
    owners = dict.fromkeys(model.parameters(), "other")
    # the neck holds backbone and guidance
    for name in sorted(parts, key=lambda name: name != "neck"):
        for module in parts[name]:
            owners |= dict.fromkeys(module.parameters(), name)
    prompted = _prompted(model)
    if prompted is not None:
        owners |= dict.fromkeys(prompted.encoder.parameters(), "text")
    counts = dict.fromkeys(parts, 0)
    for parameter, name in owners.items():
        counts[name] = counts.get(name, 0) + parameter.numel()
    counts.pop("text", None)
    return counts


def _text_tower(model: Any) -> nn.Module | None:
    """The text tower, also one that the model keeps outside of its modules."""
    prompted = _prompted(model)
    if prompted is not None:
        return prompted.encoder
    if isinstance(getattr(model, "embedder", None), VocabularyEmbedder):
        with torch.device("meta"):
            encoder: nn.Module = model.embedder.encoder
            return encoder
    return None


def _prompted(model: nn.Module) -> PromptedTextEncoder | None:
    return next((m for m in model.modules() if isinstance(m, PromptedTextEncoder)), None)


def _text_of_images(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The part of what the prompted text tower computes for an image: nothing if it is kept."""
    prompted = _prompted(model)
    return {} if prompted is None else {TEXT_EVERY_IMAGE: [prompted]}


def _parameters(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _prepare_vocabulary(model: Any) -> int | None:
    """Put the text embeddings in their place; return the FLOPs of the prompted text tower."""
    if isinstance(model, OpenVocabularyRCNN):
        groups = torch.tensor(model.vocabulary.groups, device="cpu")
        dim = model.roi_heads.box_predictor.classifier.embed_dim
        vectors = torch.zeros(len(groups), dim)
        model.set_classes(ClassEmbeddings(vectors, groups, torch.zeros(dim)))
    prompted = _prompted(model)
    if prompted is None:
        return None
    with FlopCounter() as counter:
        prompted()
    return counter.total


def _default_size(model: Any) -> Size:
    side = model.backbone.padding_constraints.get("square_size", 0)
    if side:
        return side, side
    return SEGMENTATION_SIZE if isinstance(model, SemanticSegmentor) else DETECTION_SIZE


def _padded_size(backbone: Backbone, size: Size) -> Size:
    """As Detectron2's ``ImageList`` pads an image."""
    side = backbone.padding_constraints.get("square_size", 0)
    if side and max(size) > side:
        raise ConfigError(
            f"--size {size[0]} {size[1]} is larger than the square of {side} pixels that the "
            "backbone pads to"
        )
    if min(size) < 1:
        raise ConfigError(f"--size {size[0]} {size[1]}: both must be at least 1")
    height, width = (side, side) if side else size
    step = max(1, backbone.size_divisibility)
    return -(-height // step) * step, -(-width // step) * step


def _run(model: Any, images: Tensor, counter: FlopCounter) -> None:
    """One image [1, 3, H, W] through a model in evaluation."""
    if getattr(model, "predict_from", "head") == "scores":
        model.guided.guide(images)
        return
    features = model.backbone(images)
    if isinstance(model, RetinaNet):
        model.head([features[name] for name in model.head_in_features])
    if isinstance(model, GeneralizedRCNN):
        _run_rcnn_heads(model, features, counter)
    if isinstance(model, SemanticSegmentor | PanopticFPN):
        model.sem_seg_head(features)


def _run_rcnn_heads(model: Any, features: dict[str, Tensor], counter: FlopCounter) -> None:
    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.rpn_head([features[name] for name in rpn.in_features])
    channels = features[heads.box_in_features[0]].shape[1]
    pooled = torch.zeros(BOX_REGIONS, channels, *heads.box_pooler.output_size)
    embedded = heads.box_head(pooled)
    if getattr(heads.box_predictor, "ensemble", None) is None:
        heads.box_predictor(embedded)
    else:
        dense = torch.zeros(BOX_REGIONS, features[DENSE_FEATURE].shape[1])
        heads.box_predictor(embedded, dense)
    if heads.mask_on:
        channels = features[heads.mask_in_features[0]].shape[1]
        with counter.part("mask head"):  # its forward pass needs boxes
            heads.mask_head.layers(
                torch.zeros(MASK_REGIONS, channels, *heads.mask_pooler.output_size)
            )
