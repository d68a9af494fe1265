"""CLIPSelf: a CLIP image tower learns from itself to see regions (arXiv 2310.01403)."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from torch import Tensor, nn

from densedet.clip import ClipVisual
from densedet.clip.trainable import unlock
from densedet.errors import ConfigError
from densedet.modeling.checks import check_choice
from densedet.modeling.region_encoder import (
    check_modes,
    embed_crops,
    embed_regions,
    square_images,
)
from densedet.regions import pool_boxes
from densedet.regions.cache import EmbeddingCache
from densedet.regions.crops import (
    Backend,
    Padding,
    crop_and_resize,
    normalise,
    scale_boxes,
)
from densedet.weights import weights_digest


@META_ARCH_REGISTRY.register()
class CLIPSelf(nn.Module):
    """Distils the image embedding of crops into the dense map of the whole picture.

    The loss is one minus the mean cosine between the student's dense map, pooled over regions
    (RoIAlign 1x1), and the frozen teacher's embedding of the crops there. No text takes part. Both
    towers stay in eval mode: CLIP has no dropout, and batch norms keep their statistics.

    The forward pass is what DistributedDataParallel wraps, and the mean is over the regions of all
    processes, so that the gradients are those of one process with the whole batch.

    Args:
        student: the tower that is trained.
        teacher: the tower that sees the crops; None takes a copy of the student.
        student_size: the whole picture is resized to fit a square of this side, pixels, and padded
            with black at the right and the bottom; a multiple of the student's stride.
        crop_size: side of the teacher's crops, pixels; None: the native size of the weights.
        trainable: what trains, see :func:`densedet.clip.trainable.unlock`.
        crop_padding: "centre" keeps the aspect ratio of a crop and pads it with black, as CLIPSelf
            does; "stretch" fills the square.
        crop_backend: "auto", "device" or "pil", see :func:`densedet.regions.crops.crop_and_resize`.
        teacher_cache: folder in which the teacher's embeddings are kept, for regions that come
            again in every epoch (proposals); None computes them every time. It is to be used for
            one data set: images are told apart by their id and the name of their file. It is
            refused by a model with other weights, crops or precision.
        checkpointing: recompute the student's activations in the backward pass to save memory.
        modes: what is embedded in evaluation, see
            :func:`densedet.modeling.region_encoder.embed_regions`.

    Raises:
        ConfigError: a size is no multiple of the stride of its tower, an unknown ``crop_padding``,
            ``crop_backend`` or ``trainable``, or a mode that the student does not have.
    """

    def __init__(
        self,
        student: ClipVisual,
        teacher: ClipVisual | None = None,
        *,
        student_size: int,
        crop_size: int | None = None,
        trainable: int | Literal["all"] = "all",
        crop_padding: Padding = "centre",
        crop_backend: Backend = "auto",
        teacher_cache: str | None = None,
        checkpointing: bool = False,
        modes: Sequence[str] = ("boxes", "masks"),
    ) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(student) if teacher is None else teacher
        self.teacher.requires_grad_(False)
        crop_size = self.teacher.image_size[0] if crop_size is None else crop_size
        _check_side("student_size", student_size, student, "student")
        _check_side("crop_size", crop_size, self.teacher, "teacher")
        check_choice("model.crop_padding", crop_padding, Padding)
        check_choice("model.crop_backend", crop_backend, Backend)
        check_modes(student, modes)
        self.student = student
        unlock(student, trainable)
        student.checkpointing = checkpointing
        self.student_size, self.crop_size = student_size, crop_size
        self.crop_padding, self.crop_backend = crop_padding, crop_backend
        self.teacher_cache = teacher_cache
        self._teacher_digest: str | None = None
        self.modes = tuple(modes)
        self.eval()

    def train(self, mode: bool = True) -> "CLIPSelf":
        """Set the mode; both towers stay in eval mode."""
        self.training = mode
        self.student.eval()
        self.teacher.eval()
        return self

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.student.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return the loss in training, embeddings of regions in evaluation.

        Args:
            batched_inputs: in training what :class:`densedet.data.RegionMapper` gives, in
                evaluation what :class:`densedet.data.RegionTruthMapper` gives.

        Returns:
            ``{"loss_cosine": scalar}``; or for each picture a dict of ``[K, D]`` by mode.

        Raises:
            ConfigError: the mapper made images or crops of other sizes than this model's.
            CheckpointError: the cache is that of another teacher, or damaged.
        """
        if not self.training:
            return embed_regions(
                self.student,
                batched_inputs,
                image_size=self.student_size,
                crop_size=self.crop_size,
                modes=self.modes,
                crop_padding=self.crop_padding,
            )
        boxes = [
            scale_boxes(s["regions"], (s["height"], s["width"]), self.student_size)
            for s in batched_inputs
        ]
        return self.losses(
            self._student_images(batched_inputs), boxes, self._teacher_embeddings(batched_inputs)
        )

    def losses(
        self, images: Tensor, boxes: Sequence[Tensor], embeddings: Tensor
    ) -> dict[str, Tensor]:
        """One minus the mean cosine of pooled student features and teacher embeddings.

        Args:
            images: ``[B, 3, H, W]``, normalised; H and W are multiples of the student's stride.
            boxes: for each image ``[K_i, 4]``, (x0, y0, x1, y1) in its pixels.
            embeddings: ``[K, D]``, the teacher's, image by image.
        """
        dense = self.student(images, pooled=False).dense
        pooled = pool_boxes(dense, boxes, self.student.stride)
        distances = 1 - F.cosine_similarity(pooled.float(), embeddings.float(), dim=1)
        return {"loss_cosine": distances.sum() / _share_of_count(distances)}

    def _student_images(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        if "student" in batched_inputs[0]:
            _check_pixels(batched_inputs, "student", "student_size", self.student_size)
            pixels = torch.stack([s["student"] for s in batched_inputs]).to(self.device)
            return normalise(pixels, self.student.pixel_mean, self.student.pixel_std)
        images = [s["image"].to(self.device, non_blocking=True) for s in batched_inputs]
        return square_images(self.student, images, self.student_size, self.crop_backend)

    @torch.no_grad()
    def _teacher_embeddings(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        if self.teacher_cache is None:
            return self._embed_crops(batched_inputs)
        cache = EmbeddingCache(self.teacher_cache, self._teacher_identity())
        keys = [f"{s['image_id']} {Path(s['file_name']).name}" for s in batched_inputs]
        pairs = zip(keys, batched_inputs, strict=True)
        kept = [cache.get(key, sample["crop_rectangles"]) for key, sample in pairs]
        rest = [_without(s, known) for s, (_, known) in zip(batched_inputs, kept, strict=True)]
        counts = [len(sample["crop_rectangles"]) for sample in rest]
        new = self._embed_crops([s for s, count in zip(rest, counts, strict=True) if count])
        parts = new.float().cpu().split(counts)
        for key, sample, part in zip(keys, rest, parts, strict=True):
            if len(part):
                cache.put(key, sample["crop_rectangles"], part)
        merged = [_merge(*pair, part) for pair, part in zip(kept, parts, strict=True)]
        return torch.cat(merged).to(self.device)

    def _teacher_identity(self) -> str:
        """All that the teacher's embeddings depend on."""
        if self._teacher_digest is None:
            self._teacher_digest = weights_digest(self.teacher.state_dict())
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        crops = f"{self.crop_size}-{self.crop_padding}-{self.crop_backend}"
        return f"{self._teacher_digest}-{crops}-{str(dtype).removeprefix('torch.')}"

    def _embed_crops(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        if not batched_inputs:
            return torch.zeros(0, self.teacher.embed_dim, device=self.device)
        if "crops" in batched_inputs[0]:
            _check_pixels(batched_inputs, "crops", "crop_size", self.crop_size)
            if self.crop_padding != "centre":
                raise ConfigError(
                    f"model.crop_padding={self.crop_padding!r}, but RegionMapper.pil_sizes makes "
                    "crops that are padded around the centre; set pil_sizes=None"
                )
            pixels = torch.cat([s["crops"] for s in batched_inputs]).to(self.device)
        else:
            pixels = crop_and_resize(
                [s["image"].to(self.device, non_blocking=True) for s in batched_inputs],
                [s["crop_rectangles"] for s in batched_inputs],
                self.crop_size,
                self.crop_padding,
                self.crop_backend,
            )
        return embed_crops(self.teacher, pixels)


def _check_side(name: str, size: int, visual: ClipVisual, tower: str) -> None:
    if size < 1 or size % visual.stride:
        raise ConfigError(
            f"model.{name}={size} must be a multiple of {visual.stride}, the stride of the {tower}"
        )


def _check_pixels(samples: Sequence[dict[str, Any]], key: str, name: str, size: int) -> None:
    """Compare what the mapper made with what the model is told to work on."""
    for sample in samples:
        side = sample[key].shape[-1]
        if side != size:
            raise ConfigError(
                f"RegionMapper.pil_sizes makes {key} pixels of side {side}, but model.{name} is "
                f"{size}; give both the same number"
            )


def _merge(old: Tensor, known: Tensor, new: Tensor) -> Tensor:
    """``[K, D]``: the rows of ``old`` that are known, the others from ``new`` in their order."""
    rows = new.new_zeros(len(known), new.shape[1])
    rows[~known] = new
    if known.any():  # else an image without a file, whose `old` is [K, 0]
        rows[known] = old[known]
    return rows


def _without(sample: dict[str, Any], known: Tensor) -> dict[str, Any]:
    """A sample without the crops that are known already."""
    of_crops = ("crop_rectangles", "crops")
    return {key: value[~known] if key in of_crops else value for key, value in sample.items()}


def _share_of_count(values: Tensor) -> Tensor:
    """The number of values over all processes, divided by the number of processes.

    DistributedDataParallel averages gradients over processes; a sum divided by this becomes the
    mean over all values.
    """
    count = values.new_tensor(float(len(values)))
    world = comm.get_world_size()
    if world > 1:
        torch.distributed.all_reduce(count)
    return (count / world).clamp(min=1.0 / world)
