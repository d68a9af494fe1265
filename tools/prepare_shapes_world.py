"""Write the synthetic data set Shapes World: scenes in COCO formats, and image-caption pairs."""

import argparse
import logging
from pathlib import Path

from densedet.cli import ToolParser, run_tool
from densedet.data.shapes_world_recipe import ShapesWorldRecipe


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of data sets")
    parser.add_argument("--train", type=int, default=ShapesWorldRecipe.train, help="scenes")
    parser.add_argument("--val", type=int, default=ShapesWorldRecipe.val, help="scenes")
    parser.add_argument("--pairs", type=int, default=0, help="image-caption pairs")
    parser.add_argument("--seed", type=int, default=ShapesWorldRecipe.seed)
    parser.add_argument("--force", action="store_true", help="replace a data set of other counts")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    from densedet.data.shapes_world_writer import write_shapes_world

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = ShapesWorldRecipe(args.train, args.val, args.pairs, args.seed)
    folder = write_shapes_world(args.root, recipe, args.force)
    print(f"{folder}: {recipe.train} train scenes, {recipe.val} val scenes, {recipe.pairs} pairs")
    return 0


if __name__ == "__main__":
    run_tool(main)
