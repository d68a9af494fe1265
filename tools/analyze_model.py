#!/usr/bin/env python3
"""Parameters and FLOPs (multiply-adds, as fvcore counts them) of what a config describes, by part.

No weights are needed and nothing is computed. FLOPs are of one image in evaluation; the text tower
stands apart where its output is kept, and is a part "text, every image" where prompts depend on the
image. Of R-CNN they hold 1000 regions in the box head and 100 in the mask head.

Examples:
    python tools/analyze_model.py --config-file projects/denseclip/configs/ade20k_rn50_denseclip.py
    python tools/analyze_model.py --config-file CFG --size 512 512 --markdown
    python tools/analyze_model.py --config-file CFG --params-only --json output/size.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from densedet.cli import ToolParser, run_tool
from densedet.files import write_text


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser(
        prog="analyze_model.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a file, or a name of the model zoo"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="of the image (default: 1024 1024 for segmentation; for detection the square that "
        "the backbone pads to, else 800 1280)",
    )
    parser.add_argument("--params-only", action="store_true", help="leave the FLOPs out")
    parser.add_argument("--markdown", action="store_true", help="print a table in Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all figures")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="change the config; +KEY=VALUE adds a key"
    )
    return parser


def table(analysis: Any, markdown: bool) -> str:
    """Millions of parameters and billions of FLOPs, a line for each part."""
    from densedet.benchmark.timing import format_table

    size = "" if analysis.size is None else f" at {analysis.size[0]}x{analysis.size[1]}"
    header = ("part", "params (M)", f"GFLOPs{size}")
    lines = {
        **analysis.parts,
        "all without text": (analysis.params_without_text, analysis.flops),
        "text, once a vocabulary": analysis.text,
    }
    rows = [
        [name, f"{params / 1e6:.3f}", "-" if flops is None else f"{flops / 1e9:.2f}"]
        for name, (params, flops) in lines.items()
    ]
    if not markdown:
        return format_table(header, rows)
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    args = build_parser().parse_intermixed_args(argv)

    from densedet import compat

    compat.apply()
    from densedet.engine.analysis import analyze, build_without_weights
    from densedet.engine.config import load_config

    model = build_without_weights(load_config(args.config_file, args.overrides))
    analysis = analyze(model, tuple(args.size) if args.size else None, not args.params_only)
    print(table(analysis, args.markdown))
    if args.json:
        content = {"config": args.config_file, "overrides": args.overrides, **analysis.as_json()}
        write_text(args.json, json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    run_tool(lambda: main(sys.argv[1:]))
