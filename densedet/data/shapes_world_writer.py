"""Shapes World on disk: a synthetic data set in the formats of COCO.

Layout below the root folder::

    shapes_world/manifest.json                       the recipe; written last
    shapes_world/{train,val}/000000.jpg              scenes
    shapes_world/annotations/instances_{train,val}.json
    shapes_world/annotations/panoptic_{train,val}.json
    shapes_world/annotations/captions_{train,val}.json
    shapes_world/panoptic_{train,val}/000000.png     segment ids, as COCO panoptic encodes them
    shapes_world/semantic_{train,val}/000000.png     index in the vocabulary "shapes_world"
    shapes_world/stuff_{train,val}/000000.png        index among its six stuff classes; things: 255
    shapes_world/pairs/00000/000000.jpg              image-caption pairs, a thousand a folder
    shapes_world/annotations/captions_pairs.json

Category ids are the index in the vocabulary "shapes_world" plus one. Nothing in it is a photograph:
it shows what methods do, not how accurate they are on real images.
"""

import json
import logging
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_util
from tqdm import tqdm

from densedet.data.segment_map import write_segment_map
from densedet.data.semantic_format import IGNORED_LABEL
from densedet.data.shapes_world_recipe import ShapesWorldRecipe
from densedet.data.shapes_world_scenes import Scene, make_pair, make_scene
from densedet.errors import DatasetError
from densedet.files import atomic_folder, writing
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

FOLDER = "shapes_world"
VOCABULARY = "shapes_world"
_JPEG_QUALITY = 95


def write_shapes_world(
    root: str | os.PathLike[str], recipe: ShapesWorldRecipe, force: bool = False
) -> Path:
    """Write the data set below ``root`` unless it is there already.

    The files are written to a temporary folder that is moved into place at the end. A data set of
    the same recipe in another format version is written anew.

    Args:
        root: the folder of the data sets.
        recipe: what to write.
        force: replace a data set of another recipe.

    Returns:
        The folder ``root/shapes_world``.

    Raises:
        DatasetError: a count is negative, or the folder holds something else and ``force`` is off.
        OutputError: the folder cannot be written.
    """
    _check_recipe(recipe)
    target = Path(root) / FOLDER
    if target.exists():
        found = read_recipe(root)
        if found == recipe:
            logger.info("%s is complete already", target)
            return target
        if found and replace(found, version=recipe.version) == recipe:
            logger.info("%s is of format version %d: writing it anew", target, found.version)
        elif not force:
            raise DatasetError(
                f"{target} holds another data set than the one asked for; choose another root "
                "or replace it with tools/prepare_shapes_world.py --force"
            )
    with writing(target):
        _write_all(target, recipe)
    return target


def _write_all(target: Path, recipe: ShapesWorldRecipe) -> None:
    with atomic_folder(target) as folder:
        (folder / "annotations").mkdir()
        for split, count in (("train", recipe.train), ("val", recipe.val)):
            _SceneWriter(folder, split).write(recipe.seed, count)
        _write_pairs(folder, recipe)
        (folder / "manifest.json").write_text(json.dumps(asdict(recipe)))


def read_recipe(root: str | os.PathLike[str]) -> ShapesWorldRecipe | None:
    """The recipe of the data set below ``root``; None if there is no complete one."""
    try:
        manifest = json.loads((Path(root) / FOLDER / "manifest.json").read_text())
        return ShapesWorldRecipe(**manifest)
    except (OSError, ValueError, TypeError):
        return None


def _check_recipe(recipe: ShapesWorldRecipe) -> None:
    for name in ("train", "val", "pairs", "seed"):
        if getattr(recipe, name) < 0:
            raise DatasetError(f"{name}={getattr(recipe, name)} must not be negative")
    if not (recipe.train or recipe.val or recipe.pairs):
        raise DatasetError("nothing to write: train, val and pairs are all zero")


def _category_records(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    return [
        {
            "id": i + 1,
            "name": category.label,
            "isthing": int(category.kind == "thing"),
            "supercategory": category.label.split()[-1] if category.kind == "thing" else "stuff",
        }
        for i, category in enumerate(vocabulary)
    ]


class _SceneWriter:
    """Writes the scenes of one split and collects their records."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.vocabulary = Vocabulary.named(VOCABULARY)
        self.stuff = _stuff_labels(self.vocabulary)
        self.images: list[dict[str, Any]] = []
        self.instances: list[dict[str, Any]] = []
        self.panoptic: list[dict[str, Any]] = []
        self.captions: list[dict[str, Any]] = []

    def write(self, seed: int, count: int) -> None:
        for kind in ("", "panoptic_", "semantic_", "stuff_"):
            (self.folder / f"{kind}{self.split}").mkdir()
        for index in tqdm(range(count), desc=f"{self.split} scenes", unit="image"):
            self._add(index, make_scene(seed, self.split, index))
        categories = _category_records(self.vocabulary)
        things = [c for c in categories if c["isthing"]]
        self._dump("instances", annotations=self.instances, categories=things)
        self._dump("panoptic", annotations=self.panoptic, categories=categories)
        self._dump("captions", annotations=self.captions)

    def _dump(self, kind: str, **records: Any) -> None:
        path = self.folder / "annotations" / f"{kind}_{self.split}.json"
        path.write_text(json.dumps({"images": self.images, **records}))

    def _add(self, index: int, scene: Scene) -> None:
        height, width = scene.image.shape[:2]
        name, image_id = f"{index:06d}", index + 1
        self.images.append(
            {"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width}
        )
        self.captions.append({"id": image_id, "image_id": image_id, "caption": scene.caption})
        segments: list[dict[str, Any]] = []
        ids = np.zeros((height, width), dtype=np.uint32)
        semantic = np.full((height, width), IGNORED_LABEL, dtype=np.uint8)
        regions = [(label, mask) for label, mask in scene.stuff]
        regions += [(thing.label, thing.mask) for thing in scene.things]
        for label, mask in regions:
            category = self.vocabulary.index(label)
            segment = {"id": len(segments) + 1, "category_id": category + 1, **_geometry(mask)}
            segments.append({**segment, "iscrowd": 0})
            ids[mask], semantic[mask] = segment["id"], category
        for thing in scene.things:
            self.instances.append(self._instance(image_id, thing.label, thing.mask))
        self.panoptic.append(
            {"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}
        )
        self._save(scene.image, self.split, f"{name}.jpg")
        write_segment_map(self.folder / f"panoptic_{self.split}" / f"{name}.png", ids)
        self._save(semantic, f"semantic_{self.split}", f"{name}.png")
        self._save(self.stuff[semantic], f"stuff_{self.split}", f"{name}.png")

    def _instance(self, image_id: int, label: str, mask: NDArray[np.bool_]) -> dict[str, Any]:
        rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {
            "id": len(self.instances) + 1,
            "image_id": image_id,
            "category_id": self.vocabulary.index(label) + 1,
            "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            "iscrowd": 0,
            **_geometry(mask),
        }

    def _save(self, pixels: NDArray[np.uint8], folder: str, name: str) -> None:
        # PNG has no use for the quality
        Image.fromarray(pixels).save(self.folder / folder / name, quality=_JPEG_QUALITY)


def _stuff_labels(vocabulary: Vocabulary) -> NDArray[np.uint8]:
    """The label of each category of ``vocabulary`` [256]: the index among its stuff, or ignored."""
    labels = np.full(256, IGNORED_LABEL, dtype=np.uint8)
    stuff = [i for i, kind in enumerate(vocabulary.kinds) if kind == "stuff"]
    labels[stuff] = np.arange(len(stuff))
    return labels


def _geometry(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's "area" and "bbox" (x, y, width, height) of a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
    return {"area": int(mask.sum()), "bbox": box}


def _write_pairs(folder: Path, recipe: ShapesWorldRecipe) -> None:
    if not recipe.pairs:
        return
    images, captions = [], []
    for index in tqdm(range(recipe.pairs), desc="image-caption pairs", unit="pair"):
        pixels, caption = make_pair(recipe.seed, index)
        name = f"{index // 1000:05d}/{index:06d}.jpg"
        path = folder / "pairs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=_JPEG_QUALITY)
        height, width = pixels.shape[:2]
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        captions.append({"id": index + 1, "image_id": index + 1, "caption": caption})
    path = folder / "annotations" / "captions_pairs.json"
    path.write_text(json.dumps({"images": images, "annotations": captions}))
