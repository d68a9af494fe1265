"""Write densedet's base class lists from Detectron2's metadata.

    python tools/make_class_lists.py [--out FOLDER]

The files are deterministic: a test holds that they equal the committed ones byte for byte.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densedet.cli import ToolParser, run_tool
from densedet.errors import InstallationError
from densedet.files import write_text

RESOURCES = Path(__file__).resolve().parents[1] / "densedet" / "vocabulary" / "resources"


def render(source: str, records: Sequence[Mapping[str, Any]]) -> str:
    """JSON with one record a line, so that a change of one class is a change of one line."""
    lines = ",\n".join("    " + json.dumps(record) for record in records)
    head = f'{{\n  "source": {json.dumps(source)},\n  "categories": [\n'
    return f"{head}{lines}\n  ]\n}}\n"


def coco_panoptic(categories: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of COCO panoptic: ids with gaps, things and stuff."""
    kinds = ("stuff", "thing")
    return [{"id": c["id"], "name": c["name"], "kind": kinds[c["isthing"]]} for c in categories]


def lvis_v1(categories: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """``name``, not ``synonyms[0]``: they differ for "bull", and annotation files have ``name``."""
    ordered = sorted(categories, key=lambda c: int(c["id"]))
    return [{"id": c["id"], "name": c["name"], "frequency": c["frequency"]} for c in ordered]


def ade20k_150(names: Sequence[str]) -> list[dict[str, Any]]:
    """Detectron2 writes "window " with a space."""
    return [{"id": i, "name": name.strip()} for i, name in enumerate(names)]


def voc_20(names: Sequence[str]) -> list[dict[str, Any]]:
    """The ids are the labels of the segmentation, where 0 is the background."""
    return [{"id": i, "name": name} for i, name in enumerate(names, start=1)]


def cityscapes_19(categories: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ids are those of the ``labelIds`` maps; the order is that of the training ids."""
    kinds = ("stuff", "thing")
    ordered = sorted(categories, key=lambda c: int(c["trainId"]))
    return [{"id": c["id"], "name": c["name"], "kind": kinds[c["isthing"]]} for c in ordered]


def render_class_lists() -> dict[str, str]:
    """File name -> content.

    Raises:
        InstallationError: Detectron2 cannot be imported.
    """
    try:
        from detectron2.data.datasets import builtin_meta, pascal_voc
        from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES
    except ImportError as error:
        raise InstallationError(
            f"Detectron2 cannot be imported ({error}); run tools/install_detectron2.py first"
        ) from error
    package = "detectron2.data.datasets"
    return {
        "coco_panoptic.json": render(
            f"{package}.builtin_meta.COCO_CATEGORIES", coco_panoptic(builtin_meta.COCO_CATEGORIES)
        ),
        "lvis_v1.json": render(
            f"{package}.lvis_v1_categories.LVIS_CATEGORIES", lvis_v1(LVIS_CATEGORIES)
        ),
        "ade20k_150.json": render(
            f"{package}.builtin_meta.ADE20K_SEM_SEG_CATEGORIES",
            ade20k_150(builtin_meta.ADE20K_SEM_SEG_CATEGORIES),
        ),
        "cityscapes_19.json": render(
            f"{package}.builtin_meta.CITYSCAPES_CATEGORIES",
            cityscapes_19(builtin_meta.CITYSCAPES_CATEGORIES),
        ),
        "voc_20.json": render(f"{package}.pascal_voc.CLASS_NAMES", voc_20(pascal_voc.CLASS_NAMES)),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    parser = ToolParser(description="Write the base class lists from Detectron2.")
    parser.add_argument(
        "--out", type=Path, default=RESOURCES, help="folder (default: densedet's resources)"
    )
    args = parser.parse_args(argv)
    for name, text in render_class_lists().items():
        write_text(args.out / name, text)
        print(args.out / name)
    return 0


if __name__ == "__main__":
    run_tool(main)
