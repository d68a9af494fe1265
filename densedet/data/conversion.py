"""Writing label maps and panoptic annotations from the files of a data set's own archives.

A folder of label maps appears when all of it is written, so that nothing reads half of one.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from densedet.data.images import read_label_map
from densedet.data.mat_file import read_mat_matrix
from densedet.data.segment_map import write_segment_map
from densedet.data.semantic_format import IGNORED_LABEL, pair_files, read_names
from densedet.errors import DatasetError
from densedet.files import atomic_folder, write_text, writing
from densedet.vocabulary import Vocabulary

_MAX_LABEL = 65535  # of 16 bits

Sources = dict[str, Path]
"""From the path of a file to write, without its suffix, to the file that it is made from."""


@dataclass(frozen=True)
class Conversion:
    """Files to be written from those of an archive.

    Attributes:
        outputs: files and folders; there if all of them exist, and the folders have files.
        sources: finds what they are made from; raises DatasetError if files are missing.
        write: writes the outputs.
        split: name of the data set that has one image a source; empty if there is none.
    """

    outputs: tuple[Path, ...]
    sources: Callable[[], Sources]
    write: Callable[[Sources], None]
    split: str = ""

    def missing(self) -> list[Path]:
        """The outputs that do not exist, or are folders without a file."""
        return [path for path in self.outputs if not _has_files(path)]


def _has_files(path: Path) -> bool:
    return path.is_file() or any(file.is_file() for file in path.rglob("*"))


class LabelTable:
    """Turns the labels of a data set's own files into class indices.

    Args:
        labels: the label of each class, in the order of the classes.
        ignored: other labels that may occur; they become ``ignore_label``.
        ignore_label: 255 gives 8-bit label maps, 65535 those of 16 bits.
    """

    def __init__(
        self, labels: Sequence[int], ignored: Iterable[int], ignore_label: int = IGNORED_LABEL
    ) -> None:
        self._table = np.full(_MAX_LABEL + 1, -1, dtype=np.int32)
        self._table[list(ignored)] = ignore_label
        self._table[list(labels)] = np.arange(len(labels))
        self._dtype = np.uint8 if ignore_label <= 255 else np.uint16
        self._classes = len(labels)

    def __call__(
        self, labels: NDArray[np.number], path: str | os.PathLike[str]
    ) -> NDArray[np.unsignedinteger]:
        """The class indices [H, W] of labels [H, W] of any type; ``path`` is for the message.

        Raises:
            DatasetError: a label that is none of the data set's, or no whole number.
        """
        whole = (labels >= 0) & (labels <= _MAX_LABEL) & (labels == np.floor(labels))
        indices = self._table[np.where(whole, labels, 0).astype(np.uint16)]
        wrong = labels[~whole | (indices < 0)]
        if wrong.size:
            raise DatasetError(
                f"label map {path} has the label {wrong.max()}, which none of the "
                f"{self._classes} classes has; it belongs to another data set or version: unpack "
                "the official archive again"
            )
        return indices.astype(self._dtype)

    def of_image(self, path: Path) -> NDArray[np.unsignedinteger]:
        """The class indices [H, W] of an 8-bit label map.

        Raises:
            ImageError, DatasetError: as :func:`densedet.data.images.read_label_map` and a call.
        """
        return self(read_label_map(path), path)

    def of_matrix(self, path: Path, variable: str) -> NDArray[np.unsignedinteger]:
        """The class indices [H, W] of a variable in a MATLAB file.

        Raises:
            DatasetError: as :func:`densedet.data.mat_file.read_mat_matrix` and a call.
        """
        return self(read_mat_matrix(path, variable), path)


def label_sources(
    image_root: Path, label_root: Path, hint: str, names_file: Path | None = None
) -> Sources:
    """The PNGs of an archive whose paths are those of their images.

    Args:
        image_root, label_root, hint, names_file: see :func:`densedet.data.load_semantic_format`.

    Raises:
        DatasetError: as there.
    """
    pairs = pair_files(image_root, label_root, hint, names_file=names_file)
    return {name: labels for name, (_, labels) in pairs.items()}


def mat_sources(folder: Path, names_file: Path, hint: str) -> Sources:
    """The MATLAB files ``folder/NAME.mat`` of the names that a file lists.

    Raises:
        DatasetError: the list or one of the files is missing; ``hint`` ends the message.
    """
    paths = {name: folder / f"{name}.mat" for name in read_names(names_file, hint)}
    check_files(paths.values(), hint)
    return paths


def check_files(paths: Collection[Path], hint: str) -> None:
    """Check that files exist.

    Raises:
        DatasetError: one of them is missing; ``hint`` ends the message.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DatasetError(
            f"{missing[0]} does not exist ({len(missing)} of {len(paths)} are missing); {hint}"
        )


def label_conversion(
    target: Path,
    sources: Callable[[], Sources],
    read: Callable[[Path], NDArray[np.unsignedinteger]],
    split: str,
) -> Conversion:
    """A folder of label maps, PNG of 8 or 16 bits.

    Args:
        target: the folder.
        sources: see :class:`Conversion`.
        read: gives the class indices [H, W] of a source.
        split: see :class:`Conversion`.
    """

    def write(found: Sources) -> None:
        with atomic_folder(target) as folder:
            for name, source in tqdm(found.items(), desc=f"{split}: label maps", unit="file"):
                labels = Image.fromarray(read(source))
                path = folder / f"{name}.png"
                with writing(target / f"{name}.png"):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    labels.save(path)

    return Conversion((target,), sources, write, split)


@dataclass(frozen=True)
class PanopticImage:
    """What one source becomes: the entry of the image, a map of segment ids [H, W], the segments.

    The segments have "id", "category_id", "area", "bbox" and "iscrowd", as in COCO's format.
    """

    image: dict[str, Any]
    ids: NDArray[np.integer]
    segments: list[dict[str, Any]]


def panoptic_conversion(
    folder: Path,
    categories: list[dict[str, Any]],
    sources: Callable[[], Sources],
    read: Callable[[Path], PanopticImage],
    split: str,
) -> Conversion:
    """A folder of panoptic PNGs, named as the sources, and the JSON file beside it.

    Args:
        folder: of the PNGs; the file has the same name with the suffix ".json".
        categories: the list of that name in the file.
        sources, split: see :class:`Conversion`.
        read: what a source becomes.
    """
    json_file = folder.with_name(f"{folder.name}.json")

    def write(found: Sources) -> None:
        images, annotations = [], []
        with atomic_folder(folder) as temporary:
            for name, source in tqdm(found.items(), desc=f"{split}: segments", unit="file"):
                result = read(source)
                write_segment_map(temporary / f"{name}.png", result.ids)
                images.append(result.image)
                annotations.append(
                    {
                        "image_id": result.image["id"],
                        "file_name": f"{name}.png",
                        "segments_info": result.segments,
                    }
                )
            with writing(json_file):
                json_file.unlink(missing_ok=True)  # of the folder that is replaced now
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(json_file, json.dumps(content))

    return Conversion((folder, json_file), sources, write, split)


def category_entries(vocabulary: Vocabulary, ids: Sequence[int]) -> list[dict[str, Any]]:
    """The list "categories" of a panoptic file."""
    return [
        {"id": i, "name": category.label, "isthing": int(category.kind == "thing")}
        for i, category in zip(ids, vocabulary, strict=True)
    ]


def segment_entry(
    mask: NDArray[np.bool_], number: int, category_id: int, crowd: bool = False
) -> dict[str, Any]:
    """The entry of a segment [H, W] that is not empty, in COCO's panoptic format."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "category_id": category_id,
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        "iscrowd": int(crowd),
    }
