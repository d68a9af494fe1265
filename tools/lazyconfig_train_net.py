#!/usr/bin/env python3
"""Train or evaluate what a LazyConfig describes.

Examples:
    python tools/lazyconfig_train_net.py --config-file projects/fvit/configs/quickstart.py
    python tools/lazyconfig_train_net.py --config-file CFG --resume train.max_iter=2000
    python tools/lazyconfig_train_net.py --config-file CFG --eval-only \\
        train.init_checkpoint=output/model_final.pth
    torchrun --nproc-per-node 2 tools/lazyconfig_train_net.py --config-file CFG
"""

import argparse
import sys

from densedet.cli import ToolParser, run_tool


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser(
        prog="lazyconfig_train_net.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a file, or a name of the model zoo"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate and do not train")
    parser.add_argument(
        "--resume", action="store_true", help="go on from (or evaluate) the last checkpoint"
    )
    parser.add_argument(
        "--num-gpus", type=int, help="GPUs of this machine, one process each (default: one process)"
    )
    parser.add_argument("--num-machines", type=int, default=1, help="machines of the job")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine")
    parser.add_argument(
        "--dist-url", default="auto", help="e.g. tcp://HOST:PORT; auto: a free port of this machine"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="change the config; +KEY=VALUE adds a key"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    args = build_parser().parse_intermixed_args(argv)

    from densedet import compat

    compat.apply()
    from densedet.engine.config import load_config
    from densedet.engine.launch import launch
    from densedet.engine.options import train_options
    from densedet.engine.train import run

    options = train_options(load_config(args.config_file, args.overrides))
    launch(
        run,
        (args.config_file, args.overrides, args.eval_only, args.resume),
        device=options.device,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        timeout=options.seconds("evaluation"),
    )
    return 0


if __name__ == "__main__":
    run_tool(lambda: main(sys.argv[1:]))
