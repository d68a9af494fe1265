#!/usr/bin/env python3
"""Label boxes with the words that CLIP finds closest, for the RegionCLIP-style baseline.

Each box becomes a crop, and the category of the vocabulary whose embedding is closest to the crop's
is its label. The result is a COCO-format file: the vocabulary as categories, the cosines as scores,
and the images that have a label.

Examples:
    python tools/make_region_labels.py --proposals datasets/coco/annotations/coco_proposals.json \\
        --image-root datasets/coco/train2017 --vocabulary lvis_v1 \\
        --captions datasets/coco/annotations/captions_train2017.json --min-count 100 \\
        --model EVA02-B-16 --pretrained EVA02_CLIP_B_psz16_s8B.pt \\
        --output datasets/coco/annotations/coco_pseudo_4764.json
    python tools/make_region_labels.py --output output/region_labels.json \\
        --boxes datasets/shapes_world/annotations/instances_train.json \\
        --image-root datasets/shapes_world/train --vocabulary shapes_world
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from densedet.cli import ToolParser, run_tool
from densedet.errors import ConfigError, DatasetError
from densedet.files import write_text


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser(
        prog="make_region_labels.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--boxes", metavar="JSON", help="COCO-format file whose boxes are labelled")
    source.add_argument(
        "--proposals", metavar="FILE", help="COCO-format, or Detectron2's proposals (a pickle)"
    )
    add("--images", metavar="JSON", help="the images, if the file of proposals does not list them")
    add(
        "--max-boxes",
        type=int,
        default=100,
        metavar="N",
        help="of --proposals, the N with the highest scores of each image (default %(default)s)",
    )
    add("--image-root", required=True, metavar="FOLDER", help="where the images are")
    add("--vocabulary", required=True, help='"cat,kitten;dog", a file or a class list')
    add("--captions", metavar="JSON", help="take only categories that occur in these captions")
    add("--min-count", type=int, default=1, metavar="N", help="captions that a category occurs in")
    add("--model", default="densedet-tiny", help="CLIP architecture")
    add("--pretrained", default="shipped", help="file, open_clip tag, or shipped")
    add("--templates", default="clipself63", help="prompt templates")
    add("--enlarge", type=float, default=1.5, help="factor on the sides of a crop")
    add("--crop-padding", default="centre", choices=["centre", "corner", "stretch"])
    add("--min-score", type=float, default=0.0, metavar="C", help="lowest cosine of a label")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--output", type=Path, required=True, metavar="JSON", help="file to write")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse values out of range.

    Raises:
        ConfigError: names the option.
        DatasetError: the file of proposals cannot be read.
    """
    from densedet.data.proposal_file import lists_images

    for name in ("min_count", "max_boxes"):
        if getattr(args, name) < 1:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} {getattr(args, name)} must be at least 1")
    if not -1.0 <= args.min_score <= 1.0:
        raise ConfigError(f"--min-score {args.min_score} is a cosine: it must lie in -1..1")
    if not 0.0 < args.enlarge < 100.0:
        raise ConfigError(f"--enlarge {args.enlarge} must lie in 0..100")
    if args.images and args.boxes:
        raise ConfigError("--images goes with --proposals: the file of --boxes lists its images")
    if args.proposals and not args.images and not lists_images(args.proposals):
        raise ConfigError(
            f"--proposals {args.proposals} does not list its images: give a COCO-format file that "
            "does with --images"
        )


def make_labels(args: argparse.Namespace) -> dict[str, Any]:
    """Read everything, label every box and return the content of the file."""
    from tqdm import tqdm

    from densedet.clip import VocabularyEmbedder, create_visual
    from densedet.data import region_labels
    from densedet.engine.launch import resolve_device
    from densedet.vocabulary import Vocabulary

    vocabulary = Vocabulary.resolve(args.vocabulary)
    if args.captions:
        vocabulary = region_labels.frequent_categories(vocabulary, args.captions, args.min_count)
    source = args.boxes or args.proposals
    records = region_labels.read_boxes(
        args.images or source, args.image_root, args.proposals, args.max_boxes
    )
    embeddings = VocabularyEmbedder(args.model, args.pretrained, args.templates)(vocabulary)
    visual = create_visual(args.model, args.pretrained).to(resolve_device(args.device, "--device"))
    labeller = region_labels.RegionLabeller(visual, embeddings, args.enlarge, args.crop_padding)
    progress = tqdm(records, unit="image")
    annotations = region_labels.label_boxes(progress, labeller, args.min_score)
    if not annotations:
        raise DatasetError(
            f"no box of {source} has a label of at least --min-score {args.min_score}: lower it, "
            "or check that the boxes are of these images"
        )
    info = {key: getattr(args, key) for key in ("model", "pretrained", "templates", "enlarge")}
    info = {"description": "pseudo-labels of boxes, made by CLIP", **info}
    return region_labels.label_file(records, args.image_root, annotations, vocabulary, info)


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    args = build_parser().parse_args(argv)
    check(args)
    content = make_labels(args)
    write_text(args.output, json.dumps(content))
    labels, images = len(content["annotations"]), len(content["images"])
    print(f"{labels} boxes of {images} images labelled, {len(content['categories'])} categories")
    print(args.output)
    return 0


if __name__ == "__main__":
    run_tool(lambda: main(sys.argv[1:]))
