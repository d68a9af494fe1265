"""Detect words in pictures: draws the detections, and writes them as COCO results with labels.

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

import torch
from PIL import Image
from tqdm import tqdm

from densedet.cli import ToolParser, run_tool
from densedet.data.images import read_image
from densedet.engine.config import load_config
from densedet.errors import ConfigError, ImageError
from densedet.files import atomic_path
from densedet.predictor import Predictor, coco_results
from densedet.visualization import draw_detections
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
        "--show", help="labels to draw and write, joined by ;  (the others still compete)"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of pictures and JSON")
    parser.add_argument("--score-threshold", type=float, default=0.3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--opts", nargs="+", default=[], help="config overrides, key=value")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    if not 0.0 <= args.score_threshold <= 1.0:
        raise ConfigError(f"--score-threshold {args.score_threshold} must lie in 0..1")
    vocabulary = Vocabulary.resolve(args.vocabulary)
    shown = list(range(len(vocabulary)))
    if args.show is not None:
        shown = [vocabulary.index(label) for label in Vocabulary.parse(args.show).labels]
    paths = find_images(args.input)
    for path in paths:  # before anything is written
        read_image(path)
    config = load_config(args.config_file, args.opts)
    predictor = Predictor(config, args.weights, args.device)
    predictor.set_vocabulary(vocabulary)

    results: list[dict[str, Any]] = []
    for number, path in enumerate(tqdm(paths, unit="image"), start=1):
        image = read_image(path)
        instances = predictor.predict(image)
        instances = instances[instances.scores >= args.score_threshold]
        instances = instances[torch.isin(instances.pred_classes, torch.tensor(shown))]
        for result in coco_results(instances, number, vocabulary):
            results.append({"file_name": str(path), **result})
        with atomic_path(args.output / f"{path.stem}.png") as temporary:
            Image.fromarray(draw_detections(image, instances, vocabulary.labels)).save(temporary)
    with atomic_path(args.output / "detections.json") as temporary:
        temporary.write_text(json.dumps(results))
    print(f"{len(paths)} images, {len(results)} detections: {args.output}")
    return 0


if __name__ == "__main__":
    run_tool(main)
