#!/usr/bin/env python3
"""Run one training under several seeds, and print mean and spread of its results.

Each seed is a process of its own: tools/lazyconfig_train_net.py with train.seed=S and
train.output_dir=D/seed_S. What is finished is not run again, what was cut off is resumed. The
figures of all results.json go to D/seeds.json.

Examples:
    python tools/run_seeds.py --config-file projects/clipself/configs/quickstart.py --seeds 0 1 2
    python tools/run_seeds.py --config-file CFG --seeds 0 1 2 --output-dir output/seeds \\
        train.max_iter=2000
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from densedet.cli import ToolParser, run_tool
from densedet.errors import ConfigError

TRAIN = Path(__file__).resolve().parent / "lazyconfig_train_net.py"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser(
        prog="run_seeds.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a file, or a name of the model zoo"
    )
    parser.add_argument(
        "--seeds", required=True, nargs="+", metavar="S", help="whole numbers, each once"
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="D", help="default: the config's train.output_dir"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change the config")
    return parser


def parse_seeds(words: Sequence[str]) -> list[int]:
    """Read the seeds.

    Raises:
        ConfigError: a word that is no whole number of at least 0, or a seed that occurs twice.
    """
    for word in words:
        if not word.isdecimal():
            raise ConfigError(f"--seeds: {word!r} is not a whole number of at least 0")
    seeds = [int(word) for word in words]
    if not seeds:
        raise ConfigError("--seeds: give at least one")
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        raise ConfigError(f"--seeds: {twice[0]} occurs twice")
    return seeds


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse an override of what this tool sets.

    Raises:
        ConfigError: ``train.seed`` or ``train.output_dir`` is among them.
    """
    for key, option in (("train.seed", "--seeds"), ("train.output_dir", "--output-dir")):
        if any(text.lstrip("+").partition("=")[0] == key for text in overrides):
            raise ConfigError(f"{key} cannot be overridden here: use {option}")


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    args = build_parser().parse_intermixed_args(argv)
    # an override right behind the seeds is read as one of them
    seeds = parse_seeds([word for word in args.seeds if "=" not in word])
    overrides = [word for word in args.seeds if "=" in word] + args.overrides
    check_overrides(overrides)

    from densedet import compat

    compat.apply()
    from densedet.engine.config import load_config
    from densedet.engine.options import train_options
    from densedet.engine.seeds import run_seed, spread, spread_table, write_spread

    default = train_options(load_config(args.config_file, overrides)).output_dir
    folder = args.output_dir or Path(default)
    results = []
    for seed in seeds:
        own = folder / f"seed_{seed}"
        print(f"seed {seed}: {own}", flush=True)
        settings = [f"train.seed={seed}", f"train.output_dir={own}"]
        program = [sys.executable, str(TRAIN), "--config-file", args.config_file, "--resume"]
        command = [*program, *overrides, *settings]
        results.append(run_seed(command, own, args.config_file, overrides))
    figures = spread(results)
    write_spread(folder / "seeds.json", seeds, figures)
    print(spread_table(figures))
    print(f"written to {folder / 'seeds.json'}")
    return 0


if __name__ == "__main__":
    run_tool(lambda: main(sys.argv[1:]))
