"""Find words in images or videos: draws what the model tells, and writes it as JSON with labels.

A detector draws detections (detections.json, COCO results); a panoptic or semantic model,
segments (segments.json); --similarity, a heat map of the cosine with a phrase (similarity.json).
Each image becomes a PNG, a video an MP4, in which the number of the frame is the image_id.

Example:
    python tools/demo.py --config-file projects/fvit/configs/quickstart.py \\
        --input datasets/shapes_world/val/00000*.jpg \\
        --vocabulary "red star;blue ring,blue hoop" --output output/demo
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from densedet import compat
from densedet.cli import ToolParser, run_tool
from densedet.errors import ConfigError, DensedetError, ImageError, OutputError
from densedet.files import atomic_path, write_text, writing
from densedet.tasks import DETECTION_SCORE, Task
from densedet.vocabulary import Vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from densedet.predictor import Predictor
    from densedet.video import Video
    from densedet.views import Results, View

KINDS = ("detections", "segments", "similarity")
LIMITS = ("top_k", "agnostic_nms")


def find_images(inputs: list[str]) -> list[Path]:
    """Files, folders and glob patterns -> image files, each once, in order.

    What is left out of a folder, or of what a pattern matches, is counted and printed.

    Raises:
        ImageError: an input gives no image, or two images would be drawn to the same file.
    """
    found: list[Path] = []
    for entry in inputs:
        path = Path(entry)
        if path.exists() and not path.is_dir():
            found.append(path)
            continue
        inside = (
            sorted(path.iterdir())
            if path.is_dir()
            else map(Path, sorted(glob.glob(entry, recursive=True)))
        )
        found += choose_images(entry, list(inside))
    images = list(dict.fromkeys(found))
    stems: dict[str, Path] = {}
    for image in images:
        other = stems.setdefault(image.stem, image)
        if other != image:
            raise ImageError(f"{other} and {image} have the same name: run them separately")
    return images


def choose_images(entry: str, inside: list[Path]) -> list[Path]:
    """The images, by their suffixes, among what is in a folder or what a pattern matches.

    Raises:
        ImageError: there is none.
    """
    from PIL import Image

    from densedet.data.images import IMAGE_FORMATS

    files = [p for p in inside if not p.is_dir() and not p.name.startswith(".")]
    known = Image.registered_extensions()
    formats = (*IMAGE_FORMATS, "MPO")  # MPO: JPEG with a second image, as cameras write it
    images = [p for p in files if p.is_file() and known.get(p.suffix.lower()) in formats]
    others = [p for p in files if p not in images]
    named = f"such as {others[0].name}" if others else ""
    if not images and others:
        suffixes = sorted(suffix for suffix, name in known.items() if name in formats)
        raise ImageError(
            f"{entry}: none of {len(others)} files, {named}, is an image by its suffix; known are "
            f"{' '.join(suffixes)}"
        )
    if not images:
        below = f"; for folders below it write '{entry}/**/*.jpg'" if inside else ""
        raise ImageError(
            f"{entry}: no such image, folder with images, or pattern that matches{below}"
        )
    if others:
        print(f"{entry}: {len(others)} of {len(files)} files are no images, {named}: left out")
    return images


def check_images(paths: list[Path]) -> None:
    """Read them all before anything is written; print which have more than one frame or page.

    Raises:
        ImageError: one cannot be read.
    """
    from densedet.data.images import open_image, read_image

    several = []
    for path in paths:
        with open_image(path, header_only=True) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                several.append(f"{path.name} has {frames} frames or pages")
        read_image(path)
    if several:
        more = f", and {len(several) - 1} more files have several" if len(several) > 1 else ""
        print(f"{several[0]}{more}: the first is looked at")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--config-file", default="quickstart", help="config, saved model, or what make demo trained"
    )
    parser.add_argument("--weights", help="checkpoint; default: model_final.pth of the output_dir")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, folders, patterns")
    source.add_argument("--video", type=Path, help="a video")
    source.add_argument(
        "--webcam", type=int, nargs="?", const=0, metavar="NUMBER", help="a camera, until Ctrl-C"
    )
    parser.add_argument("--max-frames", type=int, help="stop after so many of --video or --webcam")
    parser.add_argument(
        "--vocabulary",
        help='"cat,kitten;remote control" (two categories, one with a synonym), a file or a\n'
        "class list",
    )
    parser.add_argument(
        "--stuff",
        help="words for stuff, which has no instances; for panoptic and semantic models",
    )
    parser.add_argument(
        "--task", choices=get_args(Task), help="what to show; default: the most that the model has"
    )
    parser.add_argument(
        "--similarity", metavar="PHRASE", help="show how close a phrase is to every place instead"
    )
    parser.add_argument(
        "--show",
        help="labels to draw and write, joined by ;  The others still compete, and are none of\n"
        "these: background, wall",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of images and JSON")
    parser.add_argument(
        "--least-score",
        "--score-threshold",
        type=float,
        metavar="SCORE",
        help="what is less certain is none of these;\n"
        f"default: {DETECTION_SCORE} of instances, 0 of segments",
    )
    parser.add_argument(
        "--top-k", type=int, metavar="N", help="the most detections of an image, the best"
    )
    parser.add_argument(
        "--agnostic-nms",
        action="store_true",
        help="of detections that overlap keep the best alone, whatever their labels are",
    )
    drawing = parser.add_mutually_exclusive_group()
    drawing.add_argument(
        "--draw",
        choices=("detectron2", "fast"),
        default="detectron2",
        help="with Detectron2's visualizer (default), or many times as fast, at the resolution of\n"
        "the image",
    )
    drawing.add_argument(
        "--no-draw",
        dest="draw",
        action="store_const",
        const="none",
        help="write the JSON file alone, no images and no video",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16 or, on CUDA, fp16")
    parser.add_argument(
        "--max-pixels",
        type=int,
        help="of an image that the model sees; a larger one is made smaller for it",
    )
    parser.add_argument("--opts", nargs="+", default=[], help="config overrides, key=value")
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise ConfigError for options that do not go together."""
    if args.least_score is not None and not 0.0 <= args.least_score <= 1.0:
        raise ConfigError(f"--least-score {args.least_score} must lie in 0..1")
    if args.top_k is not None and args.top_k < 1:
        raise ConfigError(f"--top-k {args.top_k} must be at least 1")
    if args.max_pixels is not None and args.max_pixels < 1:
        raise ConfigError(f"--max-pixels {args.max_pixels} must be at least 1")
    if args.max_frames is not None and args.max_frames < 1:
        raise ConfigError(f"--max-frames {args.max_frames} must be at least 1")
    folder = next(path for path in (args.output, *args.output.parents) if path.exists())
    if not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file; name a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {folder} cannot be written to; choose another")
    words = ("vocabulary", "stuff", "task", "show", "least_score", *limits(args))
    given = [f"--{name.replace('_', '-')}" for name in words if getattr(args, name) is not None]
    if args.similarity is not None and given:
        raise ConfigError(f"--similarity has no use for {', '.join(given)}: leave one out")
    if args.similarity is not None and not args.similarity.strip():
        raise ConfigError("--similarity is empty: give a phrase")
    if args.similarity is None and args.vocabulary is None:
        raise ConfigError("give words with --vocabulary, or a phrase with --similarity")


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """Of `Predictor.predict`, what was asked for: which detections of an image are kept."""
    return {name: value for name in LIMITS if (value := getattr(args, name)) not in (None, False)}


def check_targets(args: argparse.Namespace, inputs: Iterable[Path], names: Iterable[str]) -> None:
    """Raise ConfigError if an image or video of these names, or JSON, would replace an input."""
    words = [Path(text) for text in (args.vocabulary, args.stuff) if text is not None]
    read = {path.resolve(): path for path in (*inputs, *words)}
    for name in (*names, *(f"{kind}.json" for kind in KINDS)):
        path = read.get((args.output / name).resolve())
        if path is not None:
            raise ConfigError(f"{path} would be overwritten; choose another --output")


def read_vocabulary(args: argparse.Namespace) -> Vocabulary:
    """The words of the command line."""
    vocabulary = Vocabulary.resolve(args.vocabulary)
    if args.stuff is None:
        return vocabulary
    return vocabulary.with_stuff(Vocabulary.resolve(args.stuff))


def choose_task(predictor: Predictor, args: argparse.Namespace) -> Task:
    """What to show.

    Raises:
        ConfigError: the model does not have it.
    """
    model, tasks = type(predictor.model).__name__, predictor.tasks
    if args.stuff is not None and tasks == ("instance",):
        raise ConfigError(
            f"--stuff: {model} detects things alone; leave it out, or take a panoptic or semantic "
            "model"
        )
    if args.task is not None and args.task not in tasks:
        raise ConfigError(f"--task {args.task}: {model} has {', '.join(tasks)}; take another model")
    return args.task or tasks[0]


def make_view(args: argparse.Namespace) -> tuple[str, View]:
    """What is shown, by its name, and how."""
    from densedet.views import detections_view, segments_view, similarity_view

    if args.similarity is not None:
        return "similarity", similarity_view(make_predictor(args), args.similarity, args.draw)
    vocabulary = read_vocabulary(args)
    print(vocabulary.describe())
    shown = vocabulary.labels
    if args.show is not None:
        chosen = args.show.strip().removesuffix(";").split(";")
        shown = tuple(vocabulary.labels[vocabulary.index(label)] for label in chosen)
    predictor = make_predictor(args)
    task = choose_task(predictor, args)
    predictor.set_vocabulary(vocabulary)
    if task == "semantic" and limits(args):
        raise ConfigError("--top-k and --agnostic-nms are for detections: leave them out")
    least = args.least_score
    if task == "instance":
        least = DETECTION_SCORE if least is None else least
        return "detections", detections_view(predictor, shown, least, args.draw, **limits(args))
    return "segments", segments_view(
        predictor, shown, least or 0.0, task == "panoptic", args.draw, **limits(args)
    )


def make_predictor(args: argparse.Namespace) -> Predictor:
    """The model of the command line."""
    from densedet.predictor import Predictor
    from densedet.predictor.sources import with_overrides

    config = with_overrides(args.config_file, args.opts)
    return Predictor(config, args.weights, args.device, args.precision, args.max_pixels)


def show_images(paths: list[Path], view: View, output: Path, target: Path) -> int:
    """Write what is drawn of each, and the results of all to ``target``; the number of results.

    Where one fails, or at Ctrl-C, what was finished is kept.

    Raises:
        DensedetError: one failed; the message says how many are finished.
    """
    from tqdm import tqdm

    from densedet.data.images import read_image

    results: Results = []
    finished = 0
    try:
        for number, path in enumerate(tqdm(paths, unit="image"), start=1):
            with enough_memory(path):
                drawn, found = view(read_image(path), number)
                if drawn is not None:
                    save(drawn, output / f"{path.stem}.png")
            results += [{"file_name": str(path), **result} for result in found]
            finished = number
    except (DensedetError, KeyboardInterrupt) as error:
        if not finished:
            raise
        with contextlib.suppress(OutputError):
            write_text(target, json.dumps(results))
        if isinstance(error, KeyboardInterrupt):
            raise
        what = f"{finished} of {len(paths)} images are finished, in {output}"
        raise type(error)(f"{error}; {what}") from error
    write_text(target, json.dumps(results))
    return len(results)


def save(drawn: NDArray[Any], target: Path) -> None:
    """Write an image (H, W, 3)."""
    from PIL import Image

    with atomic_path(target) as temporary, writing(target):
        Image.fromarray(drawn).save(temporary)


@contextlib.contextmanager
def enough_memory(path: Path) -> Iterator[None]:
    """Turn what Python and torch raise where memory ends into an ImageError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        from PIL import Image

        with Image.open(path) as image:
            size = f"{image.width} x {image.height} pixels"
        raise ImageError(
            f"image {path} of {size} needs more memory than there is; make it smaller, or let the "
            "model see less of it with --max-pixels"
        ) from error


def show_video(
    video: Video, view: View, target: Path | None, most: int | None
) -> tuple[int, Results]:
    """Write a video, unless ``target`` is None, which a view that draws needs.

    Returns:
        The number of its frames, and the results of all. Ctrl-C ends it early.
    """
    from tqdm import tqdm

    from densedet.video import write_video

    results: Results = []
    count = 0
    lengths = [length for length in (video.length, most) if length is not None]
    frames = tqdm(itertools.islice(video, most), unit="frame", total=min(lengths, default=None))
    output = contextlib.nullcontext() if target is None else write_video(target, video.rate)
    with output as writer:
        try:
            for number, frame in enumerate(frames, start=1):
                drawn, found = view(frame, number)
                if writer is not None and drawn is not None:
                    writer.add(drawn)
                count = number
                results += [{"file_name": video.name, **result} for result in found]
        except KeyboardInterrupt:
            if not count:
                raise
    return count, results


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    check_arguments(args)
    compat.defer_dynamo()
    quiet = args.draw == "none"
    if args.input is not None:
        paths = find_images(args.input)
        check_targets(args, paths, () if quiet else (f"{path.stem}.png" for path in paths))
        check_images(paths)
        kind, view = make_view(args)
        count = show_images(paths, view, args.output, args.output / f"{kind}.json")
        what = f"{len(paths)} images"
    else:
        from densedet.video import Video

        video = Video(args.webcam if args.video is None else args.video)
        name = "webcam.mp4" if args.video is None else f"{args.video.stem}.mp4"
        check_targets(args, [] if args.video is None else [args.video], [name] * (not quiet))
        kind, view = make_view(args)
        target = None if quiet else args.output / name
        frames, results = show_video(video, view, target, args.max_frames)
        count, what = len(results), f"{frames} frames"
        write_text(args.output / f"{kind}.json", json.dumps(results))
    found = "heat maps" if kind == "similarity" else kind
    print(f"{what}, {count} {found}: {args.output}")
    return 0


if __name__ == "__main__":
    run_tool(main)
