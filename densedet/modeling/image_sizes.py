"""Images of several sizes in one batch: none is seen together with its neighbours' padding.

Attention, the resampling of positions and group norms depend on all of a map, padding included, so
that an image would have other features in a batch of training than alone, as it is evaluated.
`ImageList` knows the sizes, and hands a backbone its tensor alone: the sizes are written into that
tensor, and a module that depends on all of a map asks for them (`apart`).
"""

from collections.abc import Callable, Mapping

import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Size = tuple[int, int]
Maps = dict[str, Tensor]
_ATTRIBUTE = "densedet_sizes"


class ImagesApart:
    """Tells the backbone of a Detectron2 model the sizes of the images; stands before the model."""

    backbone: Backbone

    def preprocess_image(self, batched_inputs: list[dict[str, Tensor]]) -> ImageList:
        """As that of the Detectron2 model."""
        images: ImageList = super().preprocess_image(batched_inputs)  # type: ignore[misc]
        if not self.backbone.padding_constraints.get("square_size", 0):
            divisor = max(1, self.backbone.size_divisibility)
            _write(images.tensor, [_rounded_up(size, divisor) for size in images.image_sizes])
        return images


def sizes_of(batch: Tensor) -> list[Size]:
    """Rows and columns of every image ``[C, h, w]`` in a batch; the rest of it is padding."""
    sizes: list[Size] | None = getattr(batch, _ATTRIBUTE, None)
    return sizes or [(batch.shape[-2], batch.shape[-1])] * len(batch)


def hand_on(images: Tensor, maps: Maps, strides: Mapping[str, float]) -> Maps:
    """Let maps of images, of these strides, tell the sizes too."""
    if hasattr(images, _ATTRIBUTE):
        for name, stride in strides.items():
            sizes = [(_cells(h, stride), _cells(w, stride)) for h, w in sizes_of(images)]
            _write(maps[name], sizes)
    return maps


def without_padding(images: Tensor, maps: Tensor, stride: float) -> list[Tensor]:
    """The map ``[C, h, w]`` of every image in a batch of maps of this stride."""
    return [
        one[:, : _cells(height, stride), : _cells(width, stride)]
        for one, (height, width) in zip(maps, sizes_of(images), strict=True)
    ]


def apart(module: nn.Module, inputs: Maps, function: Callable[[Maps], Maps]) -> Maps:
    """Call a function for the images of each size, without the padding of the others.

    The whole batch is one call if nothing is padded, or if a batch norm of the module is
    being trained: that mixes the images of a batch anyway, and must count each batch once.

    Args:
        module: that the function belongs to.
        inputs: ``[B, C, h, w]`` by name; see `sizes_of`.
        function: from inputs of images of one size, without padding, to outputs
            ``[b, C', h', w']``.

    Returns:
        The outputs of the whole batch, zero in the padding.
    """
    padded = any(hasattr(batch, _ATTRIBUTE) for batch in inputs.values())
    if not padded or _trains_batch_norm(module):
        return function(inputs)
    groups: dict[tuple[Size, ...], list[int]] = {}
    for row, shape in enumerate(zip(*map(sizes_of, inputs.values()), strict=True)):
        groups.setdefault(shape, []).append(row)
    parts = [
        function(
            {
                name: batch[rows, :, :height, :width]
                for (name, batch), (height, width) in zip(inputs.items(), shape, strict=True)
            }
        )
        for shape, rows in groups.items()
    ]
    return {name: _joined([p[name] for p in parts], list(groups.values())) for name in parts[0]}


def _joined(parts: list[Tensor], rows: list[list[int]]) -> Tensor:
    height, width = (max(part.shape[axis] for part in parts) for axis in (-2, -1))
    batch = parts[0].new_zeros(sum(map(len, rows)), parts[0].shape[1], height, width)
    for part, own in zip(parts, rows, strict=True):
        batch[own, :, : part.shape[-2], : part.shape[-1]] = part
    return batch


def _write(batch: Tensor, sizes: list[Size]) -> None:
    if not torch.jit.is_tracing() and any(size != batch.shape[-2:] for size in sizes):
        setattr(batch, _ATTRIBUTE, sizes)


def _trains_batch_norm(module: nn.Module) -> bool:
    return any(isinstance(m, _BatchNorm) and m.training for m in module.modules())


def _rounded_up(size: Size, divisor: int) -> Size:
    return -(-size[0] // divisor) * divisor, -(-size[1] // divisor) * divisor


def _cells(side: int, stride: float) -> int:
    return int(-(-side // stride))
