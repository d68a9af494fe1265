"""``crops``: a loader that ships the decoded picture against one that resizes and cuts with PIL."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densedet.benchmark.distill import PlainSamples
from densedet.benchmark.machine import Settings, positive
from densedet.benchmark.pictures import HEIGHT, WIDTH, mean_size, write_pictures
from densedet.benchmark.timing import SIDES, Timing, compare, row, time_in_turn
from densedet.benchmark.training import SameGrid
from densedet.data.loader import build_train_loader
from densedet.data.region_mapper import MIN_SIDE, RegionMapper
from densedet.errors import ConfigError
from densedet.regions.crops import crop_and_resize, normalise, whole_image

ToFloats = Callable[[Tensor, Sequence[float], Sequence[float]], Tensor]
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@dataclass(frozen=True)
class CropSizes:
    """The pictures, and the pixels that are made of them.

    Attributes:
        images: JPEG files that a timed run goes through.
        height, width: their pixels, at least 10.
        student_size: side of the whole picture's square.
        crop_size: side of the crops.
        batch: pictures that the device works on at once.

    Raises:
        ConfigError: a number below its least.
    """

    images: int = 16
    height: int = HEIGHT
    width: int = WIDTH
    student_size: int = 1024
    crop_size: int = 224
    batch: int = 2

    def __post_init__(self) -> None:
        positive(images=self.images, height=self.height, width=self.width, batch=self.batch)
        positive(image_size=self.student_size, crop_size=self.crop_size)
        for name in ("height", "width"):
            if getattr(self, name) < MIN_SIDE:
                raise ConfigError(
                    f"--{name} {getattr(self, name)} must be at least {MIN_SIDE}: the loader uses "
                    "no smaller pictures"
                )


def run_crops(settings: Settings, sizes: CropSizes) -> dict[str, Any]:
    """Time the loaders in turn in this process, as a worker runs them, then the device's part.

    The pictures and the cells are the same for all: "ours" is the loader of one uint8 picture;
    "reference" resizes and cuts with PIL and ships uint8; "padded_reference" also makes floats of
    all 20 slots, as the published loader does.

    Returns:
        {"loader", "padded_loader": as of :func:`compare`, a run is ``images`` pictures;
        "images_per_s", "bytes_per_image" (what leaves the worker): loader -> number; "device_ms":
        of a picture on the device (transfer, resize, crops, normalisation), {"ours", "reference"};
        "device_images_per_s"; "total_speedup": of loader and device one after the other;
        "largest_difference": in grey levels, of the device's pixels from PIL's; "crops_per_image";
        "jpeg_bytes"; the sizes}.
    """
    with tempfile.TemporaryDirectory() as folder:
        records = write_pictures(Path(folder), sizes.images, sizes.height, sizes.width)
        result = _measure(settings, sizes, records)
        result["jpeg_bytes"] = mean_size(records)
    return {**result, **vars(sizes)}


def crop_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    rate, size = result["images_per_s"], result["bytes_per_image"]
    padded = {"ours": rate["ours"], "reference": rate["padded_reference"]}
    total = {n: 1e3 / rate[n] + result["device_ms"][n] for n in SIDES}
    names = ("loader", "padded_loader")
    first, second = (f"{result[name]['speedup']:.2f}" for name in names)
    return [
        row("loader against PIL, images/s per worker", rate, "{:.1f}", first),
        row("... against PIL padded to 20 float crops", padded, "{:.1f}", second),
        row("shipped per image", {n: size[n] / 1e6 for n in SIDES}, "{:.2f} MB"),
        row("device's part per image", result["device_ms"], "{:.2f} ms"),
        row("loader, then device", total, "{:.2f} ms", f"{result['total_speedup']:.2f}"),
    ]


def device_part(
    samples: Sequence[dict[str, Any]], settings: Settings, sizes: CropSizes, to_floats: ToFloats
) -> tuple[Tensor, Tensor]:
    """What is left to do on the device: normalised pictures ``[B, 3, S, S]`` and crops."""
    device = settings.torch_device
    if "student" in samples[0]:
        images = torch.stack([s["student"] for s in samples]).to(device)
        crops = torch.cat([s["crops"] for s in samples]).to(device)
    else:
        pictures = [s["image"].to(device, non_blocking=True) for s in samples]
        whole = [whole_image(picture) for picture in pictures]
        images = crop_and_resize(pictures, whole, sizes.student_size, "corner")
        rectangles = [s["crop_rectangles"] for s in samples]
        crops = crop_and_resize(pictures, rectangles, sizes.crop_size, "centre")
    first, second = (to_floats(p, MEAN, STD).to(settings.dtype) for p in (images, crops))
    return first, second


def _measure(settings: Settings, sizes: CropSizes, records: list[dict[str, Any]]) -> dict[str, Any]:
    pil_sizes = (sizes.student_size, sizes.crop_size)
    mappers = {
        "ours": RegionMapper(SameGrid()),
        "reference": RegionMapper(SameGrid(), pil_sizes=pil_sizes),
    }
    loaders: dict[str, Callable[[], Any]] = {
        name: _Worker(records, mapper) for name, mapper in mappers.items()
    }
    plain = PlainSamples(records, SameGrid(), MEAN, STD, *pil_sizes)
    loaders["padded_reference"] = lambda: [plain[i] for i in range(len(records))]
    cpu = torch.device("cpu")
    times = time_in_turn(loaders, cpu, settings.repeats, settings.warmup)
    samples = {name: _map_all(mapper, records) for name, mapper in mappers.items()}
    device_times = _time_device(samples, settings, sizes)
    count = sizes.images
    return {
        "loader": compare(times["ours"], times["reference"]),
        "padded_loader": compare(times["ours"], times["padded_reference"]),
        "images_per_s": {name: count / time.median for name, time in times.items()},
        "bytes_per_image": {
            **{name: _bytes(batch[0].values()) for name, batch in samples.items()},
            "padded_reference": _bytes(plain[0]),
        },
        "device_ms": {name: 1e3 * time.median / count for name, time in device_times.items()},
        "device_images_per_s": count / device_times["ours"].median,
        "total_speedup": (times["reference"].median + device_times["reference"].median)
        / (times["ours"].median + device_times["ours"].median),
        "largest_difference": _difference(samples, settings, sizes),
        "crops_per_image": sum(len(s["regions"]) for s in samples["ours"]) / count,
    }


def _map_all(mapper: RegionMapper, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [sample for record in records if (sample := mapper(record)) is not None]


class _Worker:
    """One pass over the pictures by the training loader without processes of its own."""

    def __init__(self, records: list[dict[str, Any]], mapper: RegionMapper) -> None:
        loader = build_train_loader(records, mapper, 1, seed=0, shuffle=False)
        self.batches: Iterator[Any] = iter(loader)
        self.count = len(records)

    def __call__(self) -> None:
        for _ in range(self.count):
            next(self.batches)


def _time_device(
    samples: dict[str, list[dict[str, Any]]], settings: Settings, sizes: CropSizes
) -> dict[str, Timing]:
    to_floats = torch.compile(normalise, dynamic=True) if settings.compile else normalise

    def run(side: list[dict[str, Any]]) -> None:
        for start in range(0, len(side), sizes.batch):
            device_part(side[start : start + sizes.batch], settings, sizes, to_floats)

    sides = {name: partial(run, side) for name, side in samples.items()}
    return time_in_turn(sides, settings.torch_device, settings.repeats, settings.warmup)


def _difference(
    samples: dict[str, list[dict[str, Any]]], settings: Settings, sizes: CropSizes
) -> int:
    """Grey levels between the pixels of the two sides, at most, over the first batch."""
    exact = replace(settings, precision="fp32")
    ours, reference = (
        device_part(samples[name][: sizes.batch], exact, sizes, _grey_levels) for name in SIDES
    )
    return max(int((a - b).abs().max()) for a, b in zip(ours, reference, strict=True))


def _grey_levels(pixels: Tensor, _mean: Sequence[float], _std: Sequence[float]) -> Tensor:
    return pixels


def _bytes(values: Iterable[Any]) -> int:
    return sum(v.element_size() * v.numel() for v in values if isinstance(v, Tensor))
