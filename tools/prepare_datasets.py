"""Make a data set ready from its official files: check them, convert labels, read all annotations.

Says what is missing and where it is obtained. Running it again keeps what was made before.
"""

import argparse
import logging
from pathlib import Path

from densedet.cli import ToolParser, run_tool
from densedet.data.benchmark_names import NAMES


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__)
    parser.add_argument(
        "name", choices=NAMES, help=f"the data set: {', '.join(NAMES)}", metavar="NAME"
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="folder of the data sets (default: $DETECTRON2_DATASETS, or else datasets)",
    )
    parser.add_argument(
        "--any-count", action="store_true", help="accept a part of the official images and classes"
    )
    parser.add_argument(
        "--force", action="store_true", help="make the label maps anew that are there already"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    from densedet.data.prepare import prepare_dataset

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    contents = prepare_dataset(args.name, args.root, any_count=args.any_count, force=args.force)
    for split, content in contents.items():
        print(f"{split}: {content.summary()}")
    return 0


if __name__ == "__main__":
    run_tool(main)
