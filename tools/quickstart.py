"""The main job: data, CLIPSelf, three detectors and a panoptic model, pictures, a report.

Everything goes to output/quickstart, the report to report.html there.

What is there already and was made from the same inputs is used again.
"""

import argparse
import functools
import hashlib
import importlib
import json
import multiprocessing
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from densedet import model_zoo
from densedet.cli import ToolParser, run_tool
from densedet.data.shapes_world_recipe import ShapesWorldRecipe
from densedet.errors import DensedetError
from densedet.files import write_text
from densedet.vocabulary import Vocabulary

TOOLS = Path(__file__).resolve().parent
DISTILLATION = "projects/clipself/configs/quickstart.py"
RESULTS, MODEL, DISTILLED = "results.json", "model_final.pth", "clipself.safetensors"
DETECTORS = {
    "closed_set": "projects/fvit/configs/quickstart_closed_set.py",
    "clip": "projects/fvit/configs/quickstart.py",
    "clipself": "projects/clipself/configs/quickstart_detector.py",
}
PANOPTIC = "projects/panoptic_fpn/configs/quickstart_clipself.py"
ZERO_SHOT = "projects/panoptic_fpn/configs/quickstart_zero_shot.py"
VISUAL = "model.backbone.bottom_up.bottom_up.visual.pretrained"
PICTURES = 6


def run(tool: str, *arguments: str) -> None:
    """Run another tool of this folder; its failure ends this one.

    It runs in a fork, which has what `preload` imported: a start takes some seconds otherwise.
    """
    main = importlib.import_module(tool).main
    fork = multiprocessing.get_context("fork").Process(
        target=run_tool, args=(functools.partial(main, list(arguments)),)
    )
    sys.stdout.flush()
    fork.start()
    fork.join()
    if fork.exitcode:
        raise DensedetError(f"tools/{tool}.py failed; its message is above")


def preload() -> None:
    """Import, once for all forks, what the tools of `run` import when they run."""
    for name in ("densedet.engine.train", "densedet.evaluation.report", "densedet.views"):
        importlib.import_module(name)


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file; "" if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def fingerprint(config: str, root: Path, overrides: list[str]) -> str:
    """Digest of what a training is made from: config, data, CLIP weights, code and torch."""
    from omegaconf import OmegaConf

    from densedet.data.shapes_world_writer import read_recipe

    parts = [OmegaConf.to_yaml(model_zoo.get_config(config)), str(overrides), version("torch")]
    parts.append(repr(read_recipe(root)))
    package = TOOLS.parent / "densedet"
    files = [*package.rglob("*.py"), *(package / "clip" / "resources").iterdir()]
    parts += [file_digest(file) for file in sorted(files)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


class Run:
    """A training or an evaluation, done in ``folder`` unless it is there.

    Only evaluated is what makes no ``model_final.pth``.

    ``made_from.json`` says what the folder was made from and, once it is complete, the digests of
    what is in it. A folder of something else is moved aside.
    """

    def __init__(
        self,
        config: str,
        folder: Path,
        root: Path,
        overrides: list[str],
        makes: Sequence[str] = (RESULTS, MODEL),
    ) -> None:
        self.config, self.folder, self.root = config, folder, root
        self.overrides = [*overrides, f"dataloader.register.0.root={root}"]
        self.makes = makes
        self.mark = folder / "made_from.json"

    def finish(self, after: Path | None = None) -> None:
        """Do it, going on where an earlier run of the same was interrupted.

        Args:
            after: a file of an earlier run that this one is made from.
        """
        inputs = fingerprint(self.config, self.root, self.overrides)
        inputs += file_digest(after) if after else ""
        made = self.read_mark()
        if made == {"inputs": inputs, **self.digests()}:
            print(f"{self.folder} is complete already")
            return
        if self.folder.exists() and made != {"inputs": inputs}:
            aside = self.folder.with_name(f"{self.folder.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            self.folder.rename(aside)
            print(f"{self.folder} was made from something else: moved to {aside}")
        self.write_mark({"inputs": inputs})
        arguments = ["--config-file", self.config, f"train.output_dir={self.folder}"]
        how = "--resume" if MODEL in self.makes else "--eval-only"
        run("lazyconfig_train_net", how, *arguments, *self.overrides)
        self.write_mark({"inputs": inputs, **self.digests()})

    def digests(self) -> dict[str, str]:
        """The digests of what it makes."""
        return {name: file_digest(self.folder / name) for name in self.makes}

    def read_mark(self) -> Any:
        """What the folder is made from; {} if it does not say."""
        try:
            return json.loads(self.mark.read_text())
        except (OSError, ValueError):
            return {}

    def write_mark(self, content: dict[str, str]) -> None:
        """Say what the folder is made from."""
        write_text(self.mark, json.dumps(content))

    def results(self) -> dict[str, Any]:
        """What its evaluator found."""
        found: dict[str, Any] = json.loads((self.folder / RESULTS).read_text())
        return found


def show_unseen(output: Path, root: Path, distilled: Path) -> list[tuple[Path, str]]:
    """Detect all words in the first validation scenes with two unseen things; show the unseen."""
    things = Vocabulary.named("shapes_world_kind", kind="thing")
    unseen = [category.label for category in things if not category.seen]
    return show(
        *(DETECTORS["clipself"], output / "clipself" / MODEL, distilled),
        scenes_with_two(root, unseen),
        output / "demo",
        *("--vocabulary", ";".join(things.labels), "--show", ";".join(unseen)),
        *("--score-threshold", "0.2"),
    )


def show_kinds(output: Path, root: Path, distilled: Path) -> list[tuple[Path, str]]:
    """Segment the same scenes by kinds of things, whose coloured names are synonyms, and stuff."""
    world = Vocabulary.named("shapes_world_kind")
    kinds: dict[str, list[str]] = {}
    for label in world.of_kind("thing").labels:
        kinds.setdefault(label.split()[-1], []).append(label)
    unseen = [category.label for category in world if not category.seen]
    return show(
        *(PANOPTIC, output / "panoptic" / MODEL, distilled),
        scenes_with_two(root, unseen),
        output / "demo_panoptic",
        *("--vocabulary", ";".join(",".join([kind, *names]) for kind, names in kinds.items())),
        *("--stuff", ";".join(world.of_kind("stuff").labels)),
    )


def scenes_with_two(root: Path, labels: list[str]) -> list[Path]:
    """The first validation scenes in which two things have such labels."""
    truth = json.loads((root / "shapes_world/annotations/instances_val.json").read_text())
    ids = {c["id"] for c in truth["categories"] if c["name"] in labels}
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        if annotation["category_id"] in ids:
            counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + 1
    names = [i["file_name"] for i in truth["images"] if counts.get(i["id"], 0) >= 2]
    return [root / "shapes_world/val" / name for name in names[:PICTURES]]


def show(
    config: str, weights: Path, distilled: Path, images: list[Path], output: Path, *words: str
) -> list[tuple[Path, str]]:
    """Run the demo with a model on the distilled CLIP; its pictures with their names."""
    run(
        "demo",
        *("--config-file", config, "--weights", str(weights), "--opts", f"{VISUAL}={distilled}"),
        *("--input", *map(str, images), "--output", str(output), *words),
    )
    return [(output / image.with_suffix(".png").name, image.name) for image in images]


def build_parser() -> argparse.ArgumentParser:
    """The parser of this tool."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of data sets")
    parser.add_argument("--train", type=int, default=ShapesWorldRecipe.train, help="scenes")
    parser.add_argument("--val", type=int, default=ShapesWorldRecipe.val, help="scenes")
    parser.add_argument("--max-iter", type=int, help="iterations of each training, for a trial")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = build_parser().parse_args(argv)
    from densedet.data.shapes_world_writer import write_shapes_world

    recipe = ShapesWorldRecipe(args.train, args.val)
    write_shapes_world(args.root, recipe)
    preload()
    overrides = [] if args.max_iter is None else [f"train.max_iter={args.max_iter}"]
    common = (args.root, overrides)
    before = Run(DISTILLATION, args.output / "regions_before", *common, makes=[RESULTS])
    after = Run(DISTILLATION, args.output / "distil", *common, makes=[RESULTS, MODEL, DISTILLED])
    distilled = after.folder / DISTILLED
    before.finish()
    after.finish()
    untrained = {}
    for name, clip in (("before", "shipped"), ("after", distilled)):
        own = [f"clip.pretrained={clip}"]
        folder = args.output / f"zero_shot_{name}"
        untrained[name] = Run(ZERO_SHOT, folder, args.root, own, makes=[RESULTS])
        untrained[name].finish(after=None if clip == "shipped" else distilled)
    trained = {}
    for name, config in {**DETECTORS, "panoptic": PANOPTIC}.items():
        own = [f"{VISUAL}={distilled}"] if name in ("clipself", "panoptic") else []
        trained[name] = Run(config, args.output / name, args.root, [*overrides, *own])
        trained[name].finish(after=distilled if own else None)
    unseen = show_unseen(args.output, args.root, distilled)
    kinds = show_kinds(args.output, args.root, distilled)
    clips = {"before": before, "after": after}
    from densedet.evaluation import report

    rows = {name: report.detector_figures(trained[name].results()) for name in DETECTORS}
    regions = {name: report.region_figures(clip.results()) for name, clip in clips.items()}
    zero_shot = {name: report.segmentation_figures(r.results()) for name, r in untrained.items()}
    panoptic = {"panoptic": report.panoptic_figures(trained["panoptic"].results())}
    curves = {name: report.read_curve(r.folder / "metrics.json") for name, r in trained.items()}
    facts = {
        "training scenes": recipe.train,
        "validation scenes": recipe.val,
        "seed": recipe.seed,
        "torch": version("torch"),
        "command": "make demo",
    }
    figures = {"detector": rows, "regions": regions, "zero_shot": zero_shot, "panoptic": panoptic}
    write_text(args.output / "metrics.json", json.dumps(figures, indent=1))
    page = report.build_report(rows, regions, zero_shot, panoptic, curves, unseen, kinds, facts)
    write_text(args.output / "report.html", page)
    for group in figures.values():
        for name, row in group.items():
            print(name, row)
    print(args.output / "report.html")
    return 0


if __name__ == "__main__":
    run_tool(main)
