"""What all exported parts of a model share: pictures in, tensors out, and a description."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.vocabulary import Vocabulary

Size = tuple[int, int]


class ExportPart(nn.Module, ABC):
    """A part of a model with its vocabulary baked in, ready to be traced.

    Its input is ``[B, 3, H, W]`` float32 RGB in 0..255; the image statistics are inside. It is in
    evaluation mode and without gradient. `forward` gives one tensor for each of ``outputs``.

    Args:
        vocabulary: whose scores it gives, in this order.
        pixel_mean, pixel_std: of RGB in 0..255.
        multiple: H and W are multiples of it, pixels.

    Attributes:
        kind: its name on the command line.
        outputs: what it gives, by name, with shape and meaning.
        any_batch: whether B is free in the file; else it is 1.
        size: (H, W) where it is built for one size; None where H and W may be free.
    """

    kind: ClassVar[str]
    outputs: dict[str, str]
    any_batch: ClassVar[bool] = True

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        vocabulary: Vocabulary,
        pixel_mean: Sequence[float] | Tensor,
        pixel_std: Sequence[float] | Tensor,
        multiple: int,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.multiple = multiple
        self.size: Size | None = None
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            fixed = torch.as_tensor(values, dtype=torch.float32).reshape(3, 1, 1).clone()
            self.register_buffer(name, fixed)

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Pictures ``[B, 3, H, W]`` to the tensors of ``outputs``."""

    def normalise(self, images: Tensor) -> Tensor:
        """RGB in 0..255 to what the model takes."""
        return (images - self.pixel_mean) / self.pixel_std

    def settings(self) -> dict[str, Any]:
        """What a user of the outputs must know beyond their shapes; plain data."""
        return {}

    def check_size(self, size: Size) -> None:
        """Raise ConfigError unless pictures of this (H, W) fit."""
        if self.size is not None and size != self.size:
            raise ConfigError(
                f"this {self.kind} part is built for {self.size[0]}x{self.size[1]} (HxW) pixels, "
                f"not {size[0]}x{size[1]}: give that size"
            )
        if any(side < 1 or side % self.multiple for side in size):
            raise ConfigError(
                f"a size of {size[0]}x{size[1]} (HxW) does not fit: give multiples of "
                f"{self.multiple} pixels, the stride of the model"
            )


def padded_square(backbone: Backbone) -> Size | None:
    """The (H, W) that a backbone asks for every picture to be padded to; None where there is none.

    A part for it takes that size alone; smaller pictures are padded with ``pixel_mean`` at the
    right and the bottom.
    """
    side = int(backbone.padding_constraints.get("square_size", 0))
    return (side, side) if side else None


def left_out(model: nn.Module) -> list[str]:
    """What a model does with the results of its parts, which no part does: names of arguments."""
    return ["mask_ensemble"] if getattr(model, "mask_ensemble", None) is not None else []
