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
from densedet.modeling.region_encoder import embed_regions
from densedet.regions import pool_boxes
from densedet.regions.cache import EmbeddingCache
from densedet.regions.crops import (
    Backend,
    Padding,
    crop_and_resize,
    normalise,
    scale_boxes,
    whole_image,
)
from densedet.weights import weights_digest

_TEACHER_BATCH = 256


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
        crop_backend: "device" or "pil", see :func:`densedet.regions.crops.crop_and_resize`.
        teacher_cache: folder in which the teacher's embeddings are kept, for regions that come
            again in every epoch (proposals); None computes them every time.
        checkpointing: recompute the student's activations in the backward pass to save memory.
        modes: what is embedded in evaluation, see
            :func:`densedet.modeling.region_encoder.embed_regions`.
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
        crop_backend: Backend = "device",
        teacher_cache: str | None = None,
        checkpointing: bool = False,
        modes: Sequence[str] = ("boxes", "masks"),
    ) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(student) if teacher is None else teacher
        self.teacher.requires_grad_(False)
        self.student = student
        unlock(student, trainable)
        student.checkpointing = checkpointing
        self.student_size = student_size
        self.crop_size = self.teacher.image_size[0] if crop_size is None else crop_size
        self.crop_padding, self.crop_backend = crop_padding, crop_backend
        self.teacher_cache = teacher_cache
        self._cache: EmbeddingCache | None = None
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
            pixels = torch.stack([s["student"] for s in batched_inputs]).to(self.device)
        else:
            images = [s["image"].to(self.device, non_blocking=True) for s in batched_inputs]
            pixels = crop_and_resize(
                images,
                [whole_image(image) for image in images],
                self.student_size,
                "corner",
                self.crop_backend,
            )
        return normalise(pixels, self.student.pixel_mean, self.student.pixel_std)

    @torch.no_grad()
    def _teacher_embeddings(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        if self.teacher_cache is None:
            return self._embed_crops(batched_inputs)
        if self._cache is None:
            self._cache = EmbeddingCache(self.teacher_cache, self._teacher_identity())
        found = []
        for sample in batched_inputs:
            key = f"{sample['image_id']} {Path(sample['file_name']).name}"
            rectangles = sample["crop_rectangles"]
            embeddings, known = self._cache.get(key, rectangles)
            if not bool(known.all()):
                embeddings = self._embed_crops([sample]).float().cpu()
                self._cache.put(key, rectangles, embeddings)
            found.append(embeddings.to(self.device))
        return torch.cat(found)

    def _teacher_identity(self) -> str:
        weights = weights_digest(self.teacher.state_dict())
        return f"{weights}-{self.crop_size}-{self.crop_padding}-{self.crop_backend}"

    def _embed_crops(self, batched_inputs: list[dict[str, Any]]) -> Tensor:
        if "crops" in batched_inputs[0]:
            pixels = torch.cat([s["crops"] for s in batched_inputs]).to(self.device)
        else:
            pixels = crop_and_resize(
                [s["image"].to(self.device, non_blocking=True) for s in batched_inputs],
                [s["crop_rectangles"] for s in batched_inputs],
                self.crop_size,
                self.crop_padding,
                self.crop_backend,
            )
        mean, std = self.teacher.pixel_mean, self.teacher.pixel_std
        parts = pixels.split(_TEACHER_BATCH)
        return torch.cat([self.teacher.embed_images(normalise(p, mean, std)) for p in parts])


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
