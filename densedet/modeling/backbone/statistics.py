"""The image statistics that belong to the weights of a backbone."""

from collections.abc import Sequence

from torch import nn

from densedet.clip import ClipVisual
from densedet.errors import ConfigError
from densedet.modeling.backbone.timm_backbone import TimmBackbone


def image_statistics(backbone: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of RGB in 0..255 for the CLIP tower or timm model in a backbone.

    Raises:
        ConfigError: there is neither of them in it.
    """
    for module in backbone.modules():
        if isinstance(module, ClipVisual | TimmBackbone):
            return [255 * v for v in module.pixel_mean], [255 * v for v in module.pixel_std]
    raise ConfigError(
        f"{type(backbone).__name__} has no CLIP tower or timm model: give pixel_mean and pixel_std"
    )


def fill_statistics(
    backbone: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """What is given, and else the image statistics of the backbone's weights, RGB in 0..255.

    Raises:
        ConfigError: they are needed, and the backbone has none.
    """
    if mean is not None and std is not None:
        return mean, std
    own_mean, own_std = image_statistics(backbone)
    return own_mean if mean is None else mean, own_std if std is None else std
