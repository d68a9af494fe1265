#!/usr/bin/env python3
"""Evaluate a model with other words: how robust it is to the choice of its vocabulary.

Three studies on dataloader.test, each if asked for; the same metrics as always.
--synonyms: a fraction of the categories that have synonyms is asked for by the first one instead
of by the name. --distractors and --counts: the first N of further words compete with the
categories; what is found as one of them is wrong. --exponents: those of the ensemble with the dense
map of CLIP, for unseen and for seen classes.

Each gives a table (CSV) and a picture of its curves (PNG); results.json has all figures.

Examples:
    python tools/evaluate_vocabulary.py --config-file projects/fvit/configs/quickstart.py \\
        --distractors coco --counts 0 10 50
    python tools/evaluate_vocabulary.py --config-file CFG --weights W --exponents 0 0.5 1 \\
        --metrics bbox/AP50-seen bbox/AP50-unseen --output output/exponents
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from densedet.cli import ToolParser, run_tool
from densedet.errors import ConfigError, OutputError
from densedet.vocabulary import Vocabulary

Number = TypeVar("Number", int, float)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this tool."""
    parser = ToolParser(
        prog="evaluate_vocabulary.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a file, or a name of the model zoo"
    )
    parser.add_argument("--weights", help="checkpoint; default: model_final.pth of the output_dir")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: OUTPUT_DIR/vocabulary of the config"
    )
    lists: dict[str, Any] = {"nargs": "+", "default": []}
    parser.add_argument("--synonyms", **lists, metavar="F", help="fractions, 0 to 1")
    parser.add_argument(
        "--distractors", metavar="WORDS", help='"cat,kitten;remote control", a file or a class list'
    )
    parser.add_argument("--counts", **lists, metavar="N", help="numbers of distractors")
    parser.add_argument("--exponents", **lists, metavar="A", help="exponents, 0 to 1")
    parser.add_argument("--seed", default="0", help="of the order of --synonyms")
    parser.add_argument(
        "--metrics", **lists, metavar="TASK/NAME", help="what is drawn; default: the overall one"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="change the config")
    return parser


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; an override right behind a list is not one of its values."""
    args = build_parser().parse_intermixed_args(argv)
    for name in ("synonyms", "counts", "exponents", "metrics"):
        words = getattr(args, name)
        args.overrides = [word for word in words if "=" in word] + args.overrides
        setattr(args, name, [word for word in words if "=" not in word])
    return args


def numbers(option: str, words: Sequence[str], kind: Callable[[str], Number]) -> list[Number]:
    """Read the numbers of an option.

    Raises:
        ConfigError: a word is none.
    """
    try:
        return [kind(word) for word in words]
    except ValueError as error:
        what = "whole number" if kind is int else "number"
        raise ConfigError(f"--{option} {' '.join(words)}: each must be a {what}") from error


def check_folder(folder: Path) -> None:
    """Check that a folder is there or can be made, before the work is done; nothing is made.

    Raises:
        OutputError: it cannot be written.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"--output {folder}: {place} is no folder that can be written")


def main(argv: list[str] | None = None) -> int:
    """Run the tool and return its exit code."""
    args = parse_arguments(argv)
    (seed,) = numbers("seed", [args.seed], int)

    from densedet import compat

    compat.apply()
    from detectron2.utils.logger import setup_logger

    from densedet.engine.config import load_config
    from densedet.engine.options import train_options
    from densedet.engine.vocabulary_settings import Studies
    from densedet.engine.vocabulary_study import run_studies, write_studies

    studies = Studies(
        fractions=numbers("synonyms", args.synonyms, float),
        distractors=None if args.distractors is None else Vocabulary.resolve(args.distractors),
        counts=numbers("counts", args.counts, int),
        exponents=numbers("exponents", args.exponents, float),
        seed=seed,
    )
    cfg = load_config(args.config_file, args.overrides)
    folder = args.output or Path(train_options(cfg).output_dir) / "vocabulary"
    check_folder(folder)
    # what is set, and how long it takes; every table of every evaluation would be too much
    for name in ("densedet.engine", "detectron2.evaluation.evaluator"):
        setup_logger(name=name)
    write_studies(folder, run_studies(cfg, studies, args.weights, args.metrics))
    print(f"written to {folder}")
    return 0


if __name__ == "__main__":
    run_tool(lambda: main(sys.argv[1:]))
