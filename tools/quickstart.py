"""The main job: data, two trainings, their evaluation, pictures, output/quickstart/report.html.

What is there already and was made from the same inputs is used again.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf

from densedet import model_zoo
from densedet.cli import ToolParser, run_tool
from densedet.data.shapes_world import ShapesWorldRecipe, read_recipe, write_shapes_world
from densedet.errors import DensedetError
from densedet.evaluation.report import build_report, detector_figures, read_curve
from densedet.files import atomic_path
from densedet.vocabulary import Vocabulary

TOOLS = Path(__file__).resolve().parent
DETECTORS = {
    "closed_set": "projects/fvit/configs/quickstart_closed_set.py",
    "clip": "projects/fvit/configs/quickstart.py",
}
PICTURES = 6


def run(tool: str, *arguments: str) -> None:
    """Run another tool of this folder; its failure ends this one."""
    command = [sys.executable, str(TOOLS / tool), *arguments]
    if subprocess.run(command, check=False).returncode:
        raise DensedetError(f"tools/{tool} failed; its message is above")


def fingerprint(config: str, root: Path) -> str:
    """Digest of what a training is made from: config, data recipe, CLIP weights and torch."""
    text = OmegaConf.to_yaml(model_zoo.get_config(config)) + repr(read_recipe(root))
    digest = hashlib.sha256(text.encode())
    for file in sorted((TOOLS.parent / "densedet/clip/resources").iterdir()):
        digest.update(file.read_bytes())
    digest.update(version("torch").encode())
    return digest.hexdigest()


def train_detector(config: str, folder: Path, root: Path) -> dict[str, float | None]:
    """Train and evaluate one detector in ``folder``, or read what an earlier run left."""
    mark, made_from = folder / "made_from.txt", fingerprint(config, root)
    if mark.is_file() and mark.read_text() != made_from:
        shutil.rmtree(folder)
    results = folder / "results.json"
    if not results.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(made_from)
        overrides = (f"train.output_dir={folder}", f"dataloader.register.0.root={root}")
        run("lazyconfig_train_net.py", "--config-file", config, "--resume", *overrides)
    return detector_figures(json.loads(results.read_text()))


def show_unseen(output: Path, root: Path) -> list[tuple[Path, str]]:
    """Detect the unseen words in the first validation scenes that show at least two of them."""
    things = Vocabulary.named("shapes_world_kind", kind="thing")
    unseen = [category.label for category in things if not category.seen]
    truth = json.loads((root / "shapes_world/annotations/instances_val.json").read_text())
    ids = {c["id"] for c in truth["categories"] if c["name"] in unseen}
    counts: dict[int, int] = {}
    for annotation in truth["annotations"]:
        if annotation["category_id"] in ids:
            counts[annotation["image_id"]] = counts.get(annotation["image_id"], 0) + 1
    chosen = [i["file_name"] for i in truth["images"] if counts.get(i["id"], 0) >= 2][:PICTURES]
    run(
        "demo.py",
        *("--config-file", DETECTORS["clip"]),
        *("--weights", str(output / "clip/model_final.pth")),
        *("--input", *(str(root / "shapes_world/val" / name) for name in chosen)),
        *("--vocabulary", ";".join(unseen), "--output", str(output / "demo")),
    )
    return [(output / "demo" / Path(name).with_suffix(".png"), name) for name in chosen]


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = ToolParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/quickstart"))
    parser.add_argument("--root", type=Path, default=Path("datasets"), help="folder of data sets")
    args = parser.parse_args(argv)
    recipe = ShapesWorldRecipe()
    write_shapes_world(args.root, recipe)
    rows = {
        name: train_detector(config, args.output / name, args.root)
        for name, config in DETECTORS.items()
    }
    pictures = show_unseen(args.output, args.root)
    curves = {name: read_curve(args.output / name / "metrics.json") for name in DETECTORS}
    facts = {
        "training scenes": recipe.train,
        "validation scenes": recipe.val,
        "seed": recipe.seed,
        "torch": version("torch"),
        "command": "make demo",
    }
    with atomic_path(args.output / "metrics.json") as path:
        path.write_text(json.dumps({"detector": rows}, indent=1))
    with atomic_path(args.output / "report.html") as path:
        path.write_text(build_report(rows, curves, pictures, facts), encoding="utf-8")
    for name, row in rows.items():
        print(name, row)
    print(args.output / "report.html")
    return 0


if __name__ == "__main__":
    run_tool(main)
