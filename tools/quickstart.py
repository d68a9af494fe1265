"""The main job: data, CLIPSelf, three detectors, pictures, output/quickstart/report.html.

What is there already and was made from the same inputs is used again.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from densedet import model_zoo
from densedet.cli import ToolParser, run_tool
from densedet.data.shapes_world_writer import ShapesWorldRecipe, read_recipe, write_shapes_world
from densedet.errors import DensedetError
from densedet.evaluation.report import (
    build_report,
    detector_figures,
    read_curve,
    region_figures,
)
from densedet.files import atomic_path
from densedet.vocabulary import Vocabulary

TOOLS = Path(__file__).resolve().parent
DISTILLATION = "projects/clipself/configs/quickstart.py"
RESULTS, MODEL, DISTILLED = "results.json", "model_final.pth", "clipself.safetensors"
DETECTORS = {
    "closed_set": "projects/fvit/configs/quickstart_closed_set.py",
    "clip": "projects/fvit/configs/quickstart.py",
    "clipself": "projects/clipself/configs/quickstart_detector.py",
}
VISUAL = "model.backbone.bottom_up.bottom_up.visual.pretrained"
PICTURES = 6


def run(tool: str, *arguments: str) -> None:
    """Run another tool of this folder; its failure ends this one."""
    command = [sys.executable, str(TOOLS / tool), *arguments]
    if subprocess.run(command, check=False).returncode:
        raise DensedetError(f"tools/{tool} failed; its message is above")


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file; "" if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def fingerprint(config: str, root: Path, overrides: list[str]) -> str:
    """Digest of what a training is made from: config, data, CLIP weights, code and torch."""
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
        run("lazyconfig_train_net.py", how, *arguments, *self.overrides)
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
        with atomic_path(self.mark) as path:
            path.write_text(json.dumps(content))

    def results(self) -> dict[str, Any]:
        """What its evaluator found."""
        found: dict[str, Any] = json.loads((self.folder / RESULTS).read_text())
        return found


def show_unseen(output: Path, root: Path, distilled: Path) -> list[tuple[Path, str]]:
    """Detect all words in the first validation scenes with two unseen things; show the unseen."""
    things = Vocabulary.named("shapes_world_kind", kind="thing")
    unseen = [category.label for category in things if not category.seen]
    asked = ("--vocabulary", ";".join(things.labels), "--show", ";".join(unseen))
    truth = json.loads((root / "shapes_world/annotations/instances_val.json").read_text())
    ids = {c["id"] for c in truth["categories"] if c["name"] in unseen}
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        if annotation["category_id"] in ids:
            counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + 1
    chosen = [i["file_name"] for i in truth["images"] if counts.get(i["id"], 0) >= 2][:PICTURES]
    run(
        "demo.py",
        *("--config-file", DETECTORS["clipself"]),
        *("--weights", str(output / "clipself/model_final.pth")),
        *("--opts", f"{VISUAL}={distilled}"),
        *("--input", *(str(root / "shapes_world/val" / name) for name in chosen)),
        *(*asked, "--score-threshold", "0.2", "--output", str(output / "demo")),
    )
    return [(output / "demo" / Path(name).with_suffix(".png"), name) for name in chosen]


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
    recipe = ShapesWorldRecipe(args.train, args.val)
    write_shapes_world(args.root, recipe)
    overrides = [] if args.max_iter is None else [f"train.max_iter={args.max_iter}"]
    common = (args.root, overrides)
    before = Run(DISTILLATION, args.output / "regions_before", *common, makes=[RESULTS])
    after = Run(DISTILLATION, args.output / "distil", *common, makes=[RESULTS, MODEL, DISTILLED])
    distilled = after.folder / DISTILLED
    before.finish()
    after.finish()
    detectors = {}
    for name, config in DETECTORS.items():
        own = [f"{VISUAL}={distilled}"] if name == "clipself" else []
        detectors[name] = Run(config, args.output / name, args.root, [*overrides, *own])
        detectors[name].finish(after=distilled if own else None)
    pictures = show_unseen(args.output, args.root, distilled)
    rows = {name: detector_figures(detector.results()) for name, detector in detectors.items()}
    clips = {"before": before, "after": after}
    regions = {name: region_figures(clip.results()) for name, clip in clips.items()}
    curves = {name: read_curve(d.folder / "metrics.json") for name, d in detectors.items()}
    facts = {
        "training scenes": recipe.train,
        "validation scenes": recipe.val,
        "seed": recipe.seed,
        "torch": version("torch"),
        "command": "make demo",
    }
    with atomic_path(args.output / "metrics.json") as path:
        path.write_text(json.dumps({"detector": rows, "regions": regions}, indent=1))
    with atomic_path(args.output / "report.html") as path:
        path.write_text(build_report(rows, regions, curves, pictures, facts), encoding="utf-8")
    for name, row in [*regions.items(), *rows.items()]:
        print(name, row)
    print(args.output / "report.html")
    return 0


if __name__ == "__main__":
    run_tool(main)
