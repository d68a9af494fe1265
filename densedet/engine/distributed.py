"""A model in several processes: its gradients, and its batch norms."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from timm.layers import convert_sync_batchnorm
from torch import nn

from densedet import compat
from densedet.errors import ConfigError

logger = logging.getLogger(__name__)


def distribute(model: nn.Module, device: torch.device, options: Mapping[str, Any]) -> nn.Module:
    """Have the processes share their gradients; one process trains the model as it is.

    Args:
        model: on ``device``.
        device: of the training.
        options: of ``torch.nn.parallel.DistributedDataParallel``.

    Raises:
        ConfigError: the model has a norm that cannot be trained like this.
    """
    check_sync_norm(model, device, comm.get_world_size())
    kwargs = dict(options)
    if device.type != "cuda":
        kwargs["device_ids"] = None  # gloo; Detectron2 would pass the local rank
    return create_ddp_model(model, **kwargs)


def set_timeout(seconds: float) -> None:
    """Let the processes wait so long for each other from now on; one process waits for nobody.

    To be called by all processes: on CUDA the first call makes the group of Detectron2 that
    exchanges objects.
    """
    if comm.get_world_size() == 1:
        return
    for group in {comm._get_global_gloo_group(), torch.distributed.group.WORLD}:
        compat.set_group_timeout(seconds, group)


def check_sync_norm(model: nn.Module, device: torch.device, world_size: int) -> None:
    """Refuse ``torch.nn.SyncBatchNorm`` in several processes on the CPU, which it cannot do.

    Raises:
        ConfigError: the model has one, with its name.
    """
    if device.type != "cpu" or world_size == 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise ConfigError(
                f"{name} is a SyncBatchNorm, which torch cannot train in {world_size} processes on "
                "the CPU; set the norm to BN or GN, or use one process"
            )


def synchronise_batch_norm(model: nn.Module, device: torch.device, world_size: int) -> nn.Module:
    """Have batch norms take their statistics over the batches of all processes, on CUDA.

    Each (also timm's, which hold an activation) becomes a ``torch.nn.SyncBatchNorm`` with the same
    parameters, buffers and names. One process has nothing to share, and on the CPU torch cannot:
    there the model stays as it is. Frozen batch norms of Detectron2 are none.

    Args:
        model: changed in place, unless it is itself a batch norm.
        device: of the training.
        world_size: number of processes.

    Returns:
        The model.
    """
    if world_size == 1:
        return model
    if device.type != "cuda":
        logger.warning(
            "train.sync_batch_norm: on %s each of the %d processes has its own batch statistics",
            device.type,
            world_size,
        )
        return model
    synchronised: nn.Module = convert_sync_batchnorm(model)
    return synchronised
