"""Measure densedet against what it replaces: pooling, crops, CLIPSelf's step, text, evaluation.

Both sides run in turn on the same data. Medians are printed; --json has the quartiles as well.

Examples:
    python tools/benchmark.py pool --threads 1
    python tools/benchmark.py crops --device cuda --json output/crops.json
    python tools/benchmark.py distill --model densedet-tiny --image-size 224
    python tools/benchmark.py guidance --threads 1
    python tools/benchmark.py text --threads 1
    python tools/benchmark.py evaluate --threads 1
    python tools/benchmark.py segment --threads 1
    python tools/benchmark.py predict --threads 1
    python tools/benchmark.py start
    python tools/benchmark.py towers --threads 1
    python tools/benchmark.py draw --threads 1
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from densedet import cli, compat
from densedet.benchmark.defaults import (
    CLASSES,
    GUIDANCE_CONFIG,
    HEIGHT,
    PREDICT_CONFIG,
    PREDICT_KEPT,
    STARTS,
    TEXT_BATCH,
    TEXT_MODEL,
    TEXT_VOCABULARY,
    TOWER_SIZES,
    WIDTH,
)
from densedet.engine.precision import PRECISION_NAMES
from densedet.files import atomic_path, writing

if TYPE_CHECKING:
    from densedet.benchmark.machine import Settings

METRICS = ("panoptic", "coco", "lvis")


class Outcome(NamedTuple):
    """What a benchmark found: for the JSON by name, the table's rows and a line above them."""

    results: dict[str, dict[str, Any]]
    rows: list[list[str]]
    note: str


def pool(args: argparse.Namespace, settings: Settings) -> Outcome:
    """Pooling over boxes; the reference is torchvision.ops.roi_align."""
    from densedet.benchmark.pool import PoolSizes, pool_rows, run_pool

    sizes = PoolSizes(args.batch, args.channels, args.grid, args.split, args.channels_last)
    result = run_pool(settings, sizes)
    note = (
        f"{result['boxes']} boxes on a map of {'x'.join(map(str, result['map']))}; largest "
        f"difference {result['largest_difference']:.1e}, of the gradient "
        f"{result['largest_gradient_difference']:.1e}"
    )
    return Outcome({"pool": result}, pool_rows(result), note)


def crops(args: argparse.Namespace, settings: Settings) -> Outcome:
    """Loading for CLIPSelf; the reference resizes and cuts with PIL in the worker."""
    from densedet.benchmark.crops import CropSizes, crop_rows, run_crops

    sizes = CropSizes(
        args.images, args.height, args.width, args.image_size, args.crop_size, args.batch
    )
    result = run_crops(settings, sizes)
    note = (
        f"{sizes.images} JPEG files of {sizes.height}x{sizes.width} with "
        f"{result['jpeg_bytes'] / 1e3:.0f} kB and {result['crops_per_image']:.1f} crops each; "
        f"largest difference from PIL: {result['largest_difference']} grey level(s)"
    )
    return Outcome({"crops": result}, crop_rows(result), note)


def distill(args: argparse.Namespace, settings: Settings) -> Outcome:
    """A training step of CLIPSelf, loading included; the reference is a plain implementation."""
    from densedet.benchmark.distill import distill_rows, run_distill
    from densedet.benchmark.memory import measure_peak, memory_rows, peak_row, run_memory
    from densedet.benchmark.timing import SIDES
    from densedet.benchmark.training import DistillJob

    job = DistillJob(
        settings=settings,
        model=args.model,
        image_size=args.image_size,
        crop_size=args.crop_size,
        batch=(1 if args.memory else 2) if args.batch is None else args.batch,
        workers=args.workers,
        images=args.images,
        steps=args.steps,
        checkpointing=args.checkpointing,
    )
    what = f"{job.model} at {job.image_size}, batch {job.batch}"
    if args.memory:
        memory = run_memory(job)
        note = f"{what}; the reference is the same without activation checkpointing"
        return Outcome({"memory": memory}, memory_rows(memory), note)
    result = run_distill(job)
    result["peak_memory"] = {name: measure_peak(job, name) for name in SIDES}
    rows = [*distill_rows(result), peak_row(result["peak_memory"])]
    note = (
        f"{what}, {job.workers} loader workers, {result['crops_per_image']:.1f} crops an image; "
        f"matrix peak {result['matrix_peak'] / 1e12:.3g} TFLOP/s"
    )
    return Outcome({"distill": result}, rows, note)


def guidance(args: argparse.Namespace, settings: Settings) -> Outcome:
    """Evaluation of DenseCLIP; the reference runs the text tower for every image."""
    from densedet.benchmark.guidance import GuidanceJob, guidance_rows, run_guidance

    compat.apply()
    job = GuidanceJob(settings, args.config_file, args.image_size, args.images)
    result = run_guidance(job)
    lower, upper = result["speedup_quartiles"]
    note = (
        f"{job.config_file} at {job.image_size}, {result['classes']} classes; quartiles of the "
        f"ratio {lower:.2f} to {upper:.2f}; largest difference {result['largest_difference']:.1e}"
    )
    return Outcome({"guidance": result}, guidance_rows(result), note)


def text(args: argparse.Namespace, settings: Settings) -> Outcome:
    """Prompts of every image; the reference encodes their common beginning for every class."""
    from densedet.benchmark.text import TextJob, run_text, text_rows

    job = TextJob(settings, args.model, args.vocabulary, args.batch)
    result = run_text(job)
    note = (
        f"text tower of {job.model}, {result['prompts']} prompts for each of {job.batch} images; "
        f"time {result['time_ratio']:.2f} and multiply-adds {result['macs_ratio']:.2f} of the "
        f"reference; largest difference {result['largest_difference']:.1e}"
    )
    return Outcome({"prefix_sharing": result}, text_rows(result), note)


def evaluate(args: argparse.Namespace, settings: Settings) -> Outcome:
    """Metrics; the references are Detectron2's panoptic evaluator, pycocotools and lvis."""
    from densedet.benchmark import evaluate_detection as detection

    results: dict[str, dict[str, Any]] = {}
    rows: list[list[str]] = []
    changed = {} if args.images is None else {"images": args.images}
    for name in args.metrics:
        if name == "panoptic":
            from densedet.benchmark import evaluate_panoptic

            compat.apply()
            sizes = evaluate_panoptic.PanopticSizes(**changed)
            results[name] = evaluate_panoptic.run(settings, sizes)
            rows += evaluate_panoptic.rows(results[name])
            continue
        coco = name == "coco"
        run, usual = (
            (detection.run_coco, detection.COCO_SIZES)
            if coco
            else (detection.run_lvis, detection.LVIS_SIZES)
        )
        results[name] = run(settings, dataclasses.replace(usual, **changed))
        rows += detection.detection_rows(name, results[name])
    largest = max(result["largest_difference"] for result in results.values())
    note = f"largest difference of a figure, in percent: {largest:.1e}"
    return Outcome(results, rows, note)


def segment(args: argparse.Namespace, settings: Settings) -> Outcome:
    """Classes of pixels; the references make scores of all classes at all pixels."""
    from densedet.benchmark.segment import SegmentSizes, run_segment, segment_rows

    sizes = SegmentSizes(tuple(args.classes), args.height, args.width)
    result = run_segment(settings, sizes)
    differences = [found["largest_difference"] for found in result.values()]
    labels = sum(found["different_labels"] or 0 for found in result.values())
    largest = max((value for value in differences if value is not None), default=None)
    note = (
        f"{sizes.height}x{sizes.width} pixels; other labels than of full: {labels} pixels; largest "
        f"difference of a probability {'not measured' if largest is None else f'{largest:.1e}'}"
    )
    return Outcome({"segment": result}, segment_rows(result), note)


def predict(args: argparse.Namespace, settings: Settings) -> Outcome:
    """Predictor.predict; the reference pastes all detections as Detectron2 does."""
    from densedet.benchmark.predict import PredictJob, predict_rows, run_predict

    compat.apply()
    result = run_predict(PredictJob(settings, args.config_file, args.kept))
    lower, upper = result["speedup_quartiles"]
    note = (
        f"{args.config_file}, an image of 160x160; {result['detections']} masks against "
        f"{result['reference_detections']}; quartiles of the ratio {lower:.2f} to {upper:.2f}; "
        f"results {'agree' if result['results_agree'] else 'DIFFER'}"
    )
    return Outcome({"predict": result}, predict_rows(result), note)


def start(args: argparse.Namespace, settings: Settings) -> Outcome:
    """CPU time until tools and imports are ready; the reference is the import of torch."""
    from densedet.benchmark.start import run_start, start_rows

    folder = Path(__file__).resolve().parent
    tools = sorted(folder.glob("*.py")) if "help" in args.cases else []
    result = run_start(settings, tools, [name for name in args.cases if name != "help"])
    above, slowest = result["predictor_above_torch_s"], result["slowest_help_s"]
    parts = [
        None if slowest is None else f"slowest --help {slowest:.2f} s",
        None if above is None else f"predictor {above:.2f} s above torch",
    ]
    note = "CPU seconds, the interpreter included; " + ", ".join(filter(None, parts))
    return Outcome({"start": result}, start_rows(result), note)


def towers(args: argparse.Namespace, settings: Settings) -> Outcome:
    """A block of a ViT; the reference is the same block with the attention of open_clip."""
    from densedet.benchmark.towers import TowerJob, run_towers, tower_rows

    job = TowerJob(settings, tuple(args.image_sizes), width=args.width, heads=args.heads)
    result = run_towers(job)
    largest = max(found["largest_difference"] for found in result.values())
    note = f"{job.width} channels, {job.heads} heads; largest difference {largest:.1e}"
    return Outcome({"towers": result}, tower_rows(result), note)


def draw(args: argparse.Namespace, settings: Settings) -> Outcome:
    """Drawing detections; the reference is Detectron2's visualizer as it is."""
    from densedet.benchmark.draw import DrawSizes, draw_rows, run_draw

    result = run_draw(settings, DrawSizes(args.detections, args.height, args.width))
    note = (
        f"{args.detections} detections with masks on {args.height}x{args.width} pixels; pixels of "
        f"--draw detectron2 that differ from the reference: {result['different_pixels']}"
    )
    return Outcome({"draw": result}, draw_rows(result), note)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = cli.ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="benchmark")
    first = _command(commands, pool, repeats=30, compiled="the pooling")
    first.add_argument("--batch", type=int, default=2, help="maps")
    first.add_argument("--channels", type=int, default=512, help="of a map")
    first.add_argument("--grid", type=int, default=64, help="cells of a side of the map")
    first.add_argument("--split", type=int, default=6, help="its square is the boxes of a map")
    first.add_argument(
        "--channels-last", action="store_true", help="memory layout as the transformers give it"
    )
    second = _command(commands, crops, repeats=5, compiled="the normalisation alone, on the device")
    second.add_argument("--images", type=int, default=16, help="JPEG files")
    second.add_argument("--height", type=int, default=HEIGHT, help="of the files, pixels")
    second.add_argument("--width", type=int, default=WIDTH, help="of the files, pixels")
    second.add_argument("--image-size", type=int, default=1024, help="of the student, pixels")
    second.add_argument("--crop-size", type=int, default=224, help="of the teacher, pixels")
    second.add_argument("--batch", type=int, default=2, help="pictures at once on the device")
    third = _command(commands, distill, repeats=5, compiled="the blocks of the towers")
    third.add_argument("--model", default="EVA02-B-16", help="CLIP; its weights are random")
    third.add_argument("--image-size", type=int, default=1024, help="of the student, pixels")
    third.add_argument("--crop-size", type=int, help="of the teacher; default: the model's")
    third.add_argument("--batch", type=int, help="pictures a step; default 2, with --memory 1")
    third.add_argument("--workers", type=int, default=0, help="loader processes of each side")
    third.add_argument("--images", type=int, default=16, help="JPEG files")
    third.add_argument(
        "--steps", type=int, default=1, help="steps of a timed run; a multiple of --workers"
    )
    third.add_argument("--checkpointing", action="store_true", help="recompute our activations")
    third.add_argument("--memory", action="store_true", help="only our peak memory, both ways")
    fourth = _command(
        commands, guidance, repeats=9, compiled="the backbone, the text tower's blocks and the head"
    )
    fourth.add_argument(
        "--config-file",
        default=GUIDANCE_CONFIG,
        metavar="FILE",
        help="of a guided segmentor; its weights are random",
    )
    fourth.add_argument("--image-size", type=int, default=512, help="side, pixels")
    fourth.add_argument("--images", type=int, default=1, help="images of a timed run")
    fifth = _command(commands, text, repeats=9, compiled="the prompted text tower")
    fifth.add_argument("--model", default=TEXT_MODEL, help="CLIP; its weights are random")
    fifth.add_argument("--vocabulary", default=TEXT_VOCABULARY, help="name of a class list")
    fifth.add_argument("--batch", type=int, default=TEXT_BATCH, help="images")
    sixth = _command(commands, evaluate, repeats=5, compiled=None)
    sixth.add_argument(
        "--metrics", nargs="+", choices=METRICS, default=METRICS, help="default: all three"
    )
    sixth.add_argument("--images", type=int, help="of each; default: 100 for panoptic, else 200")
    seventh = _command(commands, segment, repeats=3, compiled=None)
    seventh.add_argument(
        "--classes", nargs="+", type=int, default=CLASSES, metavar="K", help="default: %(default)s"
    )
    seventh.add_argument("--height", type=int, default=HEIGHT, help="of the image, pixels")
    seventh.add_argument("--width", type=int, default=WIDTH, help="of the image, pixels")
    eighth = _command(commands, predict, repeats=15, compiled=None)
    eighth.add_argument(
        "--config-file",
        default=PREDICT_CONFIG,
        metavar="FILE",
        help="of a detector with masks; its weights are random",
    )
    eighth.add_argument(
        "--kept", type=int, default=PREDICT_KEPT, help="detections that reach the least score"
    )
    ninth = _command(commands, start, repeats=3, compiled=None)
    ninth.add_argument("--cases", nargs="+", choices=STARTS, default=STARTS, help="default: all")
    last = _command(commands, towers, repeats=9, compiled="the block")
    last.add_argument(
        "--image-sizes", nargs="+", type=int, default=TOWER_SIZES, help="sides, pixels"
    )
    last.add_argument("--width", type=int, default=768, help="channels of the block")
    last.add_argument("--heads", type=int, default=12, help="of its attention")
    tenth = _command(commands, draw, repeats=9, compiled=None)
    tenth.add_argument("--detections", type=int, default=10, help="with masks")
    tenth.add_argument("--height", type=int, default=HEIGHT, help="of the image, pixels")
    tenth.add_argument("--width", type=int, default=WIDTH, help="of the image, pixels")
    return parser


def _command(
    commands: Any, run: Any, repeats: int, compiled: str | None
) -> argparse.ArgumentParser:
    """Add a benchmark with the options of all; without ``compiled`` torch computes nothing."""
    command: argparse.ArgumentParser = commands.add_parser(
        run.__name__, help=run.__doc__, description=run.__doc__
    )
    command.set_defaults(run=run)
    if compiled is None:
        command.set_defaults(device="cpu", precision="fp32", compile=False)
    else:
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--precision", choices=PRECISION_NAMES, default="fp32")
        command.add_argument(
            "--compile", action="store_true", help=f"torch.compile of {compiled}, on both sides"
        )
    command.add_argument("--threads", type=int, help="of torch on the CPU; default: torch's")
    command.add_argument("--repeats", type=int, default=repeats, help="timed runs of each side")
    command.add_argument("--warmup", type=int, default=2, help="runs of each side before them")
    command.add_argument("--json", type=Path, help="file for all figures")
    return command


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    import torch

    from densedet.benchmark.machine import Settings, describe, machine_line
    from densedet.benchmark.timing import format_table

    threads = torch.get_num_threads() if args.threads is None else args.threads
    settings = Settings(
        args.device, args.precision, args.compile, threads, args.repeats, args.warmup
    )
    torch.set_num_threads(settings.threads)
    with atomic_path(args.json) if args.json else contextlib.nullcontext() as file:
        machine = describe(settings)
        outcome = args.run(args, settings)
        names = ", ".join(outcome.results)
        print(f"{names}: {machine_line(machine)}\n{outcome.note}")
        print(format_table(("what", "ours", "reference", "ratio"), outcome.rows))
        if file is not None:
            content = {"machine": machine, **outcome.results}
            with writing(args.json):
                file.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    cli.run_tool(main)
