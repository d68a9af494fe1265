"""Find words in pictures: draws what the model tells, and writes it as COCO results with labels.

A detector draws detections (detections.json); a panoptic or semantic model, segments
(segments.json).

Example:
    python tools/demo.py --config-file projects/fvit/configs/quickstart.py \\
        --input datasets/shapes_world/val/00000*.jpg \\
        --vocabulary "red star;blue ring,blue hoop" --output output/demo
"""

import argparse
import glob
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from densedet.cli import ToolParser, run_tool
from densedet.data.images import read_image
from densedet.engine.config import load_config
from densedet.errors import ConfigError, ImageError
from densedet.files import atomic_path
from densedet.predictor import Prediction, Predictor, coco_results, segment_results
from densedet.visualization import draw_detections, draw_segments
from densedet.vocabulary import Vocabulary

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def find_images(inputs: list[str]) -> list[Path]:
    """Files, folders and glob patterns -> image files, each once, in order.

    Raises:
        ImageError: an input gives no image, or two images would be drawn to the same file.
    """
    found: list[Path] = []
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = [Path(p) for p in sorted(glob.glob(entry, recursive=True))]
        if not matches:
            raise ImageError(f"{entry}: no such image, folder with images, or pattern that matches")
        found += matches
    images = list(dict.fromkeys(found))
    stems: dict[str, Path] = {}
    for image in images:
        other = stems.setdefault(image.stem, image)
        if other != image:
            raise ImageError(f"{other} and {image} have the same name: run them separately")
    return images


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config-file", default="projects/fvit/configs/quickstart.py")
    parser.add_argument("--weights", help="checkpoint; default: model_final.pth of the output_dir")
    parser.add_argument("--input", nargs="+", required=True, help="images, folders, patterns")
    parser.add_argument(
        "--vocabulary", required=True, help='"cat,kitten;remote control", a file or a class list'
    )
    parser.add_argument(
        "--stuff",
        help="words for stuff, which has no instances; for panoptic and semantic models",
    )
    parser.add_argument(
        "--show", help="labels to draw and write, joined by ;  (the others still compete)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of pictures and JSON")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="of detections")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--opts", nargs="+", default=[], help="config overrides, key=value")
    return parser


def read_vocabulary(args: argparse.Namespace) -> Vocabulary:
    """The words of the command line."""
    vocabulary = Vocabulary.resolve(args.vocabulary)
    if args.stuff is None:
        return vocabulary
    return vocabulary.with_stuff(Vocabulary.resolve(args.stuff))


def show_detections(
    image: NDArray[np.uint8],
    instances: Instances,
    number: int,
    vocabulary: Vocabulary,
    shown: list[int],
    threshold: float,
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """The picture with its detections, and these as results."""
    instances = instances[instances.scores >= threshold]
    instances = instances[torch.isin(instances.pred_classes, torch.tensor(shown))]
    drawn = draw_detections(image, instances, vocabulary.labels)
    return drawn, coco_results(instances, number, vocabulary)


def show_segments(
    image: NDArray[np.uint8],
    prediction: Prediction,
    number: int,
    vocabulary: Vocabulary,
    shown: list[int],
) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """The picture with its segments, and these as results."""
    masks, segments = prediction.segment_masks(vocabulary)
    rows = [row for row, segment in enumerate(segments) if segment["category_id"] in shown]
    found = segment_results(masks[rows], [segments[row] for row in rows], number, vocabulary)
    labels, scores = [r["label"] for r in found], [r.get("score") for r in found]
    return draw_segments(image, masks[rows].numpy(), labels, scores), found


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    if not 0.0 <= args.score_threshold <= 1.0:
        raise ConfigError(f"--score-threshold {args.score_threshold} must lie in 0..1")
    vocabulary = read_vocabulary(args)
    shown = list(range(len(vocabulary)))
    if args.show is not None:
        shown = [vocabulary.index(label) for label in Vocabulary.parse(args.show).labels]
    paths = find_images(args.input)
    for path in paths:  # before anything is written
        read_image(path)
    predictor = Predictor(load_config(args.config_file, args.opts), args.weights, args.device)
    if args.stuff is not None and not predictor.gives_segments:
        raise ConfigError(
            f"--stuff: {type(predictor.model).__name__} detects things alone; leave it out, or "
            "take a panoptic or semantic model"
        )
    predictor.set_vocabulary(vocabulary)

    results: list[dict[str, Any]] = []
    kind = "segments"
    for number, path in enumerate(tqdm(paths, unit="image"), start=1):
        image = read_image(path)
        prediction = predictor.predict(image)
        common = (number, vocabulary, shown)
        if predictor.gives_segments:
            drawn, found = show_segments(image, prediction, *common)
        else:
            kind = "detections"
            drawn, found = show_detections(
                image, prediction.instances, *common, args.score_threshold
            )
        results += [{"file_name": str(path), **result} for result in found]
        with atomic_path(args.output / f"{path.stem}.png") as temporary:
            Image.fromarray(drawn).save(temporary)
    with atomic_path(args.output / f"{kind}.json") as temporary:
        temporary.write_text(json.dumps(results))
    print(f"{len(paths)} images, {len(results)} {kind}: {args.output}")
    return 0


if __name__ == "__main__":
    run_tool(main)
