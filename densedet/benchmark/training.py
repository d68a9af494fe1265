"""What both sides of ``distill`` share: sizes, towers, cells, and the loop around the loss."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from open_clip.modified_resnet import Bottleneck
from open_clip.transformer import ResidualAttentionBlock
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from densedet.benchmark.machine import Settings, positive
from densedet.clip import ClipVisual, create_visual
from densedet.clip.token_visual import TokenVisual
from densedet.data.loader import seeded
from densedet.errors import ConfigError
from densedet.regions.sampling import GridRegions, Regions

LEARNING_RATE, WEIGHT_DECAY = 1e-5, 0.1
RESNET_GROUPS = 5


@dataclass(frozen=True)
class DistillJob:
    """What is trained on what.

    Attributes:
        settings: device, precision, repeats, ...
        model: a CLIP of ``densedet.clip.create_visual``, with random weights.
        image_size: side of the student's square, pixels.
        crop_size: side of the teacher's crops, pixels; None: the native size of the model.
        batch: pictures a step.
        workers: loader processes of each side.
        images: JPEG files of 480x640 that are gone through again and again.
        steps: steps of one timed run; in turn by the workers, so a multiple of their number where
            loading is measured.
        checkpointing: recompute activations, on our side only.

    Raises:
        ConfigError: a number is out of range, or fp16 without CUDA.
    """

    settings: Settings
    model: str = "EVA02-B-16"
    image_size: int = 1024
    crop_size: int | None = None
    batch: int = 2
    workers: int = 0
    images: int = 16
    steps: int = 1
    checkpointing: bool = False

    def __post_init__(self) -> None:
        positive(image_size=self.image_size, batch=self.batch, images=self.images, steps=self.steps)
        positive(crop_size=1 if self.crop_size is None else self.crop_size)
        if self.workers < 0:
            raise ConfigError(f"--workers {self.workers} must not be negative")
        if self.settings.precision == "fp16" and self.settings.torch_device.type != "cuda":
            raise ConfigError("--precision fp16 needs a CUDA device for training; use bf16 or fp32")

    def build_tower(self) -> ClipVisual:
        """The tower with random weights, always the same ones, on the device.

        Raises:
            ConfigError: there is no such model, or the sizes are no multiples of its stride.
        """
        with seeded(0):
            visual = create_visual(self.model)
        sizes = {"--image-size": self.image_size, "--crop-size": self.crop_side(visual)}
        for name, size in sizes.items():
            if size % visual.stride:
                raise ConfigError(
                    f"{name} {size} is no multiple of {visual.stride}, the stride of {self.model}"
                )
        return visual.to(self.settings.torch_device)

    def crop_side(self, visual: ClipVisual) -> int:
        """Pixels of the side of the teacher's crops."""
        return visual.image_size[0] if self.crop_size is None else self.crop_size


class SameGrid:
    """Grid patches that are the same whenever, and on whichever side, a picture is loaded."""

    def __init__(self) -> None:
        self.grid = GridRegions()

    def __call__(self, record: dict[str, Any], size: tuple[int, int]) -> Regions:
        """The regions of a record; see :class:`densedet.regions.sampling.GridRegions`."""
        with seeded(record["image_id"]):
            return self.grid(record, size)


@dataclass
class Side:
    """One implementation with its own weights, loader and optimiser.

    Attributes:
        batches: an endless iterator.
        loss: from a batch to the loss and the number of its crops.
        parameters: what is trained.
        settings: device and precision.
        losses: of all steps so far.
        crops: of all steps so far.
    """

    batches: Iterator[Any]
    loss: Callable[[Any], tuple[Tensor, int]]
    parameters: list[nn.Parameter]
    settings: Settings
    losses: list[float] = field(default_factory=list)
    crops: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
        )
        enabled = self.settings.dtype == torch.float16
        self.scaler = torch.amp.GradScaler("cuda", enabled=enabled)

    def step(self) -> None:
        """Load a batch and train on it."""
        batch = next(self.batches)
        with self.settings.autocast():
            loss, crops = self.loss(batch)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        self.crops.append(crops)

    def run(self, steps: int) -> None:
        """Do some steps."""
        for _ in range(steps):
            self.step()


def trained_groups(visual: ClipVisual) -> int:
    """What CLIPSelf trains: the blocks of a transformer, or all groups of a ResNet."""
    return visual.depth if isinstance(visual, TokenVisual) else RESNET_GROUPS


def trained_parameters(visual: ClipVisual) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in visual.parameters() if parameter.requires_grad]


def compile_blocks(*towers: ClipVisual) -> None:
    """Compile the blocks of the towers, one by one, where they are."""
    for tower in towers:
        for module in tower.modules():
            if isinstance(module, (EvaBlock, ResidualAttentionBlock, Bottleneck)):
                module.compile()
