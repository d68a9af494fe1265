"""Draw the pictures of the documentation, docs/assets, with the demo and the models of make demo.

The same command draws all of them again:
    python tools/make_doc_assets.py
"""

import argparse
import importlib
import tempfile
from pathlib import Path

from densedet.cli import ToolParser, run_tool
from densedet.errors import ConfigError
from densedet.files import atomic_path, writing
from densedet.vocabulary import Vocabulary

DETECTOR = "projects/clipself/configs/quickstart_detector.py"
PANOPTIC = "projects/panoptic_fpn/configs/quickstart_clipself.py"
SCENE = "shapes_world/val/000011.jpg"
SURE = ("--score-threshold", "0.5")
WIDTH = 400  # pixels of a picture
COLOURS = 64


def demo_arguments() -> dict[str, list[str]]:
    """The name of each picture, and what the demo is told for it."""
    world = Vocabulary.named("shapes_world_kind")
    things, stuff = (";".join(world.of_kind(kind).labels) for kind in ("thing", "stuff"))
    segments = ["--config-file", PANOPTIC, "--vocabulary", things, "--stuff", stuff]
    return {
        "detection": ["--config-file", DETECTOR, "--vocabulary", things, *SURE],
        "panoptic": [*segments, "--task", "panoptic"],
        "semantic": [*segments, "--task", "semantic"],
        "similarity": ["--config-file", DETECTOR, "--similarity", "cyan ball"],
    }


def draw(picture: Path, arguments: list[str], target: Path) -> None:
    """Run the demo on a picture; store what it draws small, with few colours."""
    from PIL import Image

    demo = importlib.import_module("demo")  # beside this file
    with tempfile.TemporaryDirectory() as folder:
        common = ["--input", str(picture), "--output", folder, "--device", "cpu"]
        demo.main([*common, *arguments])
        with Image.open(Path(folder) / picture.with_suffix(".png").name) as drawn:
            size = (WIDTH, round(WIDTH * drawn.height / drawn.width))
            small = drawn.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    with atomic_path(target) as path, writing(target):
        small.quantize(COLOURS).save(path, optimize=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of data sets")
    parser.add_argument("--output", type=Path, default=Path("docs/assets"))
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    picture = args.root / SCENE
    if not picture.is_file():
        raise ConfigError(f"{picture} does not exist: run make demo, or give the data with --root")
    for name, arguments in demo_arguments().items():
        draw(picture, arguments, args.output / f"{name}.png")
        print(args.output / f"{name}.png")
    return 0


if __name__ == "__main__":
    run_tool(main)
