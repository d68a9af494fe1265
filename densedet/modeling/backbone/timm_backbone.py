"""Any hierarchical timm model as a trunk, with an attention pool into the text space."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
import torch
from detectron2.modeling.backbone import BACKBONE_REGISTRY
from torch import Tensor

from densedet.clip import read_state_dict
from densedet.clip.attention_pool import AttentionPool
from densedet.errors import CheckpointError, ConfigError
from densedet.modeling.backbone.aligned import AlignedBackbone
from densedet.modeling.backbone.efficientformer import forward_levels, free_grids
from densedet.weights import StateDict, fit_strictly

_STRIDES = [4, 8, 16, 32]


@BACKBONE_REGISTRY.register()
class TimmBackbone(AlignedBackbone):
    """The four levels of a timm model and, by an attention pool on the last, embeddings.

    DenseCLIP (arXiv 2112.01518, section 4.3) guides backbones that CLIP did not train: the pool
    starts with random weights and learns to map into the space of the text embeddings.

    Args:
        name: of timm, with or without a tag of weights ("resnet50", "resnet50.a1_in1k", ...).
        embed_dim: E; None for a plain trunk without the pool.
        grid: rows and columns of the pool's position table, best the training crop / 32.
        pretrained: True for the weights that timm downloads on first use; a file of the complete
            timm model (.safetensors or a torch file; its classifier is not read); False for random
            weights.

    Raises:
        ConfigError: timm has no such model, or it has no levels of the strides 4, 8, 16 and 32.
        CheckpointError: the weights cannot be downloaded or read, or are another model's.
        ValueError: the channels of the last level are no multiple of the pool's head width.
    """

    def __init__(
        self,
        name: str,
        embed_dim: int | None = 512,
        grid: int = 16,
        pretrained: bool | str | None = False,
    ) -> None:
        channels = _channels(name)
        weights = _checked_weights(name, pretrained) if isinstance(pretrained, str) else None
        trunk = _build(name, bool(pretrained), weights)
        statistics = trunk.pretrained_cfg
        super().__init__(channels, _STRIDES, embed_dim, statistics["mean"], statistics["std"])
        self.trunk = trunk
        self._grids = free_grids(trunk)
        self.pool = AttentionPool(channels[-1], embed_dim, grid) if embed_dim else None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images [B, 3, H, W] -> "res2" .. "res5" [B, C, h, w], and the embeddings."""
        if self._grids:
            levels = forward_levels(self.trunk.model, self._grids, images)
        else:
            levels = self.trunk(images)
        if getattr(self.trunk, "output_fmt", "NCHW") == "NHWC":
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        pooled, dense = self.pool(levels[-1]) if self.pool else (None, None)
        return self._outputs(levels, dense, pooled)


def _channels(name: str) -> list[int]:
    """Channels of the levels of strides 4 to 32; ConfigError where they are not to be had."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"timm has no model named {name!r}{hint}")
    try:
        with torch.device("meta"):
            info = _create(name).feature_info
        strides = info.reduction()
    except (RuntimeError, AssertionError, IndexError) as error:  # an unknown tag, too few levels
        raise ConfigError(
            f"{name} cannot be a backbone with four levels, of strides {_STRIDES}: {error}"
        ) from error
    if strides != _STRIDES:
        raise ConfigError(
            f"the levels of {name} have strides {strides}, a backbone here needs {_STRIDES}: "
            "choose a hierarchical model (ResNet, Swin, ConvNeXt, ...)"
        )
    return info.channels()


def _build(name: str, pretrained: bool, weights: StateDict | None) -> Any:
    try:
        return _create(name, pretrained, weights)
    except (RuntimeError, OSError, ValueError) as error:
        if not pretrained:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"timm's weights of {name} could not be downloaded or read ({reason}); without "
            "network, give the path of a local file as 'pretrained'"
        ) from error


def _create(name: str, pretrained: bool = False, weights: StateDict | None = None) -> Any:
    options: dict[str, Any] = {"features_only": True, "out_indices": (-4, -3, -2, -1)}
    if name.startswith(("swin_", "swinv2_")):
        options["strict_img_size"] = False  # windows are padded to any size of image
    if weights is not None:
        options["pretrained_cfg_overlay"] = {"state_dict": dict(weights)}
    return timm.create_model(name, pretrained=pretrained, **options)


def _checked_weights(name: str, path: str) -> StateDict:
    """The weights in a file without the classifier's; CheckpointError if they do not fit."""
    with torch.device("meta"):
        complete = timm.create_model(name, num_classes=0)
    return fit_strictly(complete, _without_classifier(complete, read_state_dict(path)), path)


def _without_classifier(model: Any, state: Mapping[str, Tensor]) -> StateDict:
    classifiers = model.pretrained_cfg.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else classifiers
    prefixes = tuple(f"{name}." for name in names)
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}
