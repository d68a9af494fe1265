"""``distill``: a training step of CLIPSelf against a plain implementation of the same step.

The plain one is what the publication describes (arXiv 2310.01403, section 3.2 and its released
settings), written in the usual way: the workers resize the picture and cut its crops with PIL, pad
the crops to 20 slots of floats, and all slots travel to the device, where the valid ones are
selected; regions are pooled by torchvision. Towers, trained parameters, optimiser, pictures and
cells are the same on both sides.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align
from torchvision.transforms.functional import normalize, to_tensor

from densedet.benchmark.machine import MatrixProduct
from densedet.benchmark.pictures import write_pictures
from densedet.benchmark.timing import SIDES, compare, row, time_in_turn
from densedet.benchmark.training import (
    DistillJob,
    SameGrid,
    Side,
    compile_blocks,
    trained_groups,
    trained_parameters,
)
from densedet.clip import unlock
from densedet.data.loader import build_train_loader
from densedet.data.region_mapper import RegionMapper
from densedet.errors import ConfigError
from densedet.modeling.meta_arch.clipself import CLIPSelf
from densedet.regions.sampling import Regions

SLOTS = 20
PREFETCH = 2  # batches that a worker of torch's loader loads ahead
LOSS_TOLERANCE = 1e-3
REPORTED = ("model", "image_size", "batch", "workers", "images", "steps", "checkpointing")


def our_side(job: DistillJob, records: list[dict[str, Any]]) -> Side:
    """densedet's training step: uint8 pictures from the loader, crops on the device."""
    student = job.build_tower()
    model = CLIPSelf(
        student,
        student_size=job.image_size,
        crop_size=job.crop_size,
        trainable=trained_groups(student),
        checkpointing=job.checkpointing,
    ).train()
    if job.settings.compile:
        compile_blocks(model.student, model.teacher)

    def loss(batch: list[dict[str, Any]]) -> tuple[Tensor, int]:
        return model(batch)["loss_cosine"], sum(len(sample["regions"]) for sample in batch)

    mapper = RegionMapper(SameGrid())
    loader = build_train_loader(
        records, mapper, job.batch, seed=0, num_workers=job.workers, shuffle=False
    )
    return Side(iter(loader), loss, trained_parameters(student), job.settings)


def plain_side(job: DistillJob, records: list[dict[str, Any]]) -> Side:
    """The plain implementation that the module describes."""
    student, teacher = job.build_tower(), job.build_tower().requires_grad_(False)
    unlock(student, trained_groups(student))
    if job.settings.compile:
        compile_blocks(student, teacher)
    device = job.settings.torch_device

    def loss(batch: list[Tensor]) -> tuple[Tensor, int]:
        images, boxes, crops = (tensor.to(device, non_blocking=True) for tensor in batch)
        valid = boxes[..., 4] > 0.5
        with torch.no_grad():
            targets = teacher.embed_images(crops[valid])
        dense = student.dense_map(images)
        grid = dense.shape[-1]
        rois = [b[keep, :4] * grid for b, keep in zip(boxes, valid, strict=True)]
        pooled = roi_align(dense, rois, 1, 1.0, -1, True)[..., 0, 0]
        return 1 - F.cosine_similarity(pooled, targets, dim=1).mean(), len(targets)

    samples = PlainSamples(
        records,
        SameGrid(),
        student.pixel_mean,
        student.pixel_std,
        job.image_size,
        job.crop_side(student),
    )
    loader: DataLoader[Any] = DataLoader(
        samples,
        job.batch,
        sampler=_Endless(len(records)),
        num_workers=job.workers,
        prefetch_factor=PREFETCH if job.workers else None,
        pin_memory=device.type == "cuda",
    )
    return Side(iter(loader), loss, trained_parameters(student), job.settings)


class PlainSamples(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Pictures, boxes and crops by PIL, padded to 20 slots.

    A sample is the picture ``[3, S, S]``, its boxes ``[20, 5]`` (x0, y0, x1, y1 from 0 to 1, valid
    or not) and the crops ``[20, 3, c, c]``, all float32, pictures and crops normalised.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        regions: Callable[[dict[str, Any], tuple[int, int]], Regions],
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        crop_size: int,
    ) -> None:
        self.records, self.regions = records, regions
        self.mean, self.std = list(mean), list(std)
        self.image_size, self.crop_size = image_size, crop_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Load picture ``index``."""
        record = self.records[index]
        with Image.open(record["file_name"]) as file:
            image = file.convert("RGB")
        found = self.regions(record, (image.height, image.width))
        boxes = torch.zeros(SLOTS, 5)
        boxes[: len(found.boxes), :4] = found.boxes / max(image.size)
        boxes[: len(found.boxes), 4] = 1
        crops = torch.zeros(SLOTS, 3, self.crop_size, self.crop_size)
        for slot, rectangle in enumerate(found.rectangles.tolist()):
            crops[slot] = self._pixels(image.crop(rectangle), self.crop_size, centre=True)
        return self._pixels(image, self.image_size, centre=False), boxes, crops

    def _pixels(self, image: Image.Image, size: int, centre: bool) -> Tensor:
        """Longest side to ``size``, black around or at the right and the bottom, normalised."""
        longest = max(image.size)
        width, height = (max(1, round(side * size / longest)) for side in image.size)
        canvas = Image.new("RGB", (size, size))
        corner = ((size - width) // 2, (size - height) // 2) if centre else (0, 0)
        canvas.paste(image.resize((width, height), Image.Resampling.BICUBIC), corner)
        return normalize(to_tensor(canvas), self.mean, self.std, inplace=True)


class _Endless(Sampler[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from range(self.count)


def run_distill(job: DistillJob) -> dict[str, Any]:
    """Train with both sides in turn, loading included.

    With workers, each run follows ``2 * workers`` steps that are not timed: they use up what the
    workers loaded ahead while the other side was running.

    Returns:
        {"speedup" and the rest of :func:`compare`; "images_per_s", "matrix_share": {"ours",
        "reference"}; "matrix_peak": FLOP/s; "image_flops", "crop_flops": of the towers, forward
        and, of a picture, backward; "crops_per_image"; "first_losses", "losses_agree"; "model",
        "image_size", "batch", "workers", "steps", "checkpointing"}.

    Raises:
        ConfigError: the steps are no multiple of the workers: some runs would wait for fewer
            batches than others.
    """
    if job.steps % max(job.workers, 1):
        raise ConfigError(
            f"--steps {job.steps} must be a multiple of --workers {job.workers}: each run then "
            "uses as many batches of every worker"
        )
    settings = job.settings
    with tempfile.TemporaryDirectory() as folder:
        records = write_pictures(Path(folder), job.images)
        image_flops, crop_flops = count_flops(job, records)
        sides = {"ours": our_side(job, records), "reference": plain_side(job, records)}
        product = MatrixProduct(settings)
        runs = {name: partial(side.run, job.steps) for name, side in sides.items()}
        times = time_in_turn(
            {**runs, "matrix product": product},
            settings.torch_device,
            settings.repeats,
            settings.warmup,
            {name: partial(side.run, PREFETCH * job.workers) for name, side in sides.items()},
        )
    images = job.batch * job.steps
    per_image = float(np.mean(sides["ours"].crops)) / job.batch
    flops = images * (image_flops + per_image * crop_flops)
    peak = product.peak(times.pop("matrix product"))
    first = {name: side.losses[0] for name, side in sides.items()}
    return {
        **compare(times["ours"], times["reference"]),
        "images_per_s": {name: images / time.median for name, time in times.items()},
        "matrix_share": {name: flops / time.median / peak for name, time in times.items()},
        "matrix_peak": peak,
        "image_flops": image_flops,
        "crop_flops": crop_flops,
        "crops_per_image": per_image,
        "first_losses": first,
        "losses_agree": abs(first["ours"] - first["reference"]) <= LOSS_TOLERANCE,
        **{name: getattr(job, name) for name in REPORTED},
    }


def distill_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    rate, share, loss = (result[k] for k in ("images_per_s", "matrix_share", "first_losses"))
    return [
        row("images/s", rate, "{:.3g}", f"{result['speedup']:.2f}"),
        row("step", {n: result[n]["median_s"] / result["steps"] for n in SIDES}, "{:.3g} s"),
        row("share of the matrix peak", {n: 100 * share[n] for n in SIDES}, "{:.1f} %"),
        row("first loss", loss, "{:.5f}", "agree" if result["losses_agree"] else "DIFFER"),
    ]


def count_flops(job: DistillJob, records: list[dict[str, Any]]) -> tuple[float, float]:
    """FLOPs of a training step for one picture without crops, and of the teacher for one crop.

    Matrix products, convolutions and attention of the towers, forward and backward. It is counted
    on the plain side: our resize and pooling, and what ``checkpointing`` computes again, are left
    out.
    """
    single = replace(job, batch=1, workers=0, settings=replace(job.settings, compile=False))
    side, teacher = plain_side(single, records), job.build_tower()
    size = job.crop_side(teacher)
    crop = torch.zeros(1, 3, size, size, device=job.settings.torch_device)
    with _fused_attention_off():  # the counter does not know it
        with FlopCounterMode(display=False) as step:
            side.step()
        with FlopCounterMode(display=False) as one_crop, torch.no_grad(), job.settings.autocast():
            teacher.embed_images(crop)
    crop_flops = float(one_crop.get_total_flops())
    return step.get_total_flops() - side.crops[0] * crop_flops, crop_flops


@contextmanager
def _fused_attention_off() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
