#!/usr/bin/env python3
"""Write a model as a file that needs neither its text tower nor densedet: the words are baked in.

Parts:
  dense      pictures to the dense map of CLIP and its cosines with the words
  semantic   pictures to logits of the words at every pixel
  detector   a picture of fixed size to scored boxes and masks, before the final suppression
             (densedet.export.select_detections does it)

Formats: torch, a torch.export program (.pt2; that of a detector needs torchvision); onnx (.onnx;
extra "export"). Without --size the parts dense and semantic take pictures of any multiple of the
model's stride. What the file takes and gives, labels and digests stand in it as JSON:
"metadata.json" of a program, the property "densedet" of an ONNX model.

Examples:
    python tools/export_model.py \\
        --vocabulary "red star;blue ring" --part detector --size 160 160 --output output/stars.pt2
    python tools/export_model.py --config-file projects/denseclip/configs/quickstart.py \\
        --vocabulary shapes_world --part semantic --output output/shapes.onnx
"""

import argparse
import sys
from pathlib import Path

from densedet.cli import ToolParser, run_tool


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(
        prog="export_model.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file",
        default="quickstart",
        metavar="FILE",
        help="config, saved model, or a short name of the model zoo; default: the detector that\n"
        "make demo trains",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="checkpoint; default: model_final.pth of the output_dir, nothing for a model without "
        "training",
    )
    parser.add_argument(
        "--vocabulary",
        required=True,
        metavar="WORDS",
        help='"cat,kitten;remote control", a file or a class list',
    )
    parser.add_argument(
        "--format", metavar="FORMAT", help="torch or onnx; default: by the suffix of --output"
    )
    parser.add_argument("--part", default="dense", metavar="PART", help="default: %(default)s")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the pictures; default: any"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="change the config; +KEY=VALUE adds a key"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    args = build_parser().parse_intermixed_args(argv)
    size = tuple(args.size) if args.size else None

    from densedet import compat

    compat.apply()
    from densedet.export import choose_writer, describe, make_part, trace
    from densedet.predictor.sources import load_source, with_overrides
    from densedet.vocabulary import Vocabulary

    write = choose_writer(args.output, args.format)
    words = Vocabulary.resolve(args.vocabulary)
    model = load_source(with_overrides(args.config_file, args.overrides), args.weights).model
    model.set_vocabulary(words.seen_by(model.vocabulary))
    part = make_part(model, args.part, size)
    metadata = describe(part, size, model.state_dict())
    write(trace(part, size), args.output, metadata)
    size = size or part.size
    pixels = "any size" if size is None else f"{size[0]}x{size[1]} (HxW)"
    megabytes = args.output.stat().st_size / 1e6
    print(
        f"{args.output}: {args.part} part of {type(model).__name__}, {len(part.vocabulary)} "
        f"categories, pictures of {pixels}, {megabytes:.1f} MB"
    )
    for name in metadata["settings"].get("left_out", ()):
        print(f"left out, as it comes after this part: {name}")
    return 0


if __name__ == "__main__":
    run_tool(lambda: main(sys.argv[1:]))
