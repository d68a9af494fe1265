"""Which parameters of an image tower a training changes."""

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densedet.clip.eva import EvaVisual
from densedet.clip.resnet import ResNetVisual
from densedet.clip.visual import ClipVisual
from densedet.clip.vit import VitVisual
from densedet.errors import ConfigError

# The beginnings of the names of a group's parameters.
_Group = tuple[str, ...]


def unlock(visual: ClipVisual, groups: int | Literal["all"]) -> list[str]:
    """Let the last groups of a tower's parameters train and freeze all others.

    The groups, from the input to the output, are those of CLIPSelf (arXiv 2310.01403):

    - EVA: the blocks. Patch convolution, CLS token, position table, final norm and head are frozen.
    - ViT: patch convolution, CLS token and input norm; the position table; the blocks. So as many
      groups as blocks are the blocks. Final norm and projection are frozen.
    - ResNet: the stem and the four stages. Queries, keys and positions of the attention pool train
      with any number of groups, also 0; its values and output projection are frozen.

    Batch norms are frozen everywhere; that they do not update their statistics is for the caller,
    who keeps the tower in eval mode.

    Args:
        visual: its ``requires_grad`` flags are set.
        groups: how many; "all" for every parameter except those of batch norms.

    Returns:
        The names, in ``visual.tower``, of the parameters that train, in their order.

    Raises:
        ConfigError: the tower has not so many groups, or nothing would train.
    """
    normed = _batch_norm_parameters(visual.tower)
    prefixes = ("",) if groups == "all" else _unlocked(visual, groups)
    trained = []
    for name, parameter in visual.tower.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes) and id(parameter) not in normed)
        if parameter.requires_grad:
            trained.append(name)
    return trained


def _unlocked(visual: ClipVisual, count: int) -> tuple[str, ...]:
    groups, always = _groups(visual)
    least = 0 if always else 1
    if not isinstance(count, int) or not least <= count <= len(groups):
        zero = "; 0 trains nothing (the published EVA code took it for every block)"
        raise ConfigError(
            f"{count!r} groups of a {type(visual.tower).__name__} cannot be unlocked: "
            f"give {least}..{len(groups)}, or 'all'{zero if count == 0 else ''}"
        )
    return tuple(prefix for group in groups[len(groups) - count :] for prefix in group) + always


def _groups(visual: ClipVisual) -> tuple[list[_Group], _Group]:
    """The groups from the input to the output, and what trains with any number of them."""
    if isinstance(visual, EvaVisual):
        return [(f"trunk.blocks.{i}.",) for i in range(visual.depth)], ()
    if isinstance(visual, VitVisual):
        blocks = [(f"transformer.resblocks.{i}.",) for i in range(visual.depth)]
        return [("conv1.", "class_embedding", "ln_pre."), ("positional_embedding",), *blocks], ()
    if isinstance(visual, ResNetVisual):
        stages = [(f"layer{i}.",) for i in range(1, 5)]
        pool = ("attnpool.q_proj.", "attnpool.k_proj.", "attnpool.positional_embedding")
        return [("conv1.", "conv2.", "conv3."), *stages], pool
    raise ConfigError(f"{type(visual).__name__} has no groups to unlock; give 'all'")


def _batch_norm_parameters(tower: nn.Module) -> set[int]:
    norms = [module for module in tower.modules() if isinstance(module, _BatchNorm)]
    return {id(parameter) for norm in norms for parameter in norm.parameters()}
