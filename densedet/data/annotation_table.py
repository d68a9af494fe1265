"""The checked content of an instance annotation file, in arrays.

Records of a training, ground truth of an evaluation and vocabularies are views of it. Arrays take a
fraction of the memory of the decoded JSON, and several processes can map one copy.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from numpy.typing import NDArray

NO_MASK, POLYGONS, RUN_LENGTHS, DEGENERATE = range(4)
LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths.

    Attributes:
        values: all rows, one after the other.
        offsets: ``[N + 1]`` int64, where each begins, and the end.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]], dtype: Any) -> "Ragged":
        """From a list of lists of numbers, or of ``bytes`` (dtype uint8)."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if rows and isinstance(rows[0], bytes):
            return cls(np.frombuffer(b"".join(rows), dtype=dtype), offsets)  # type: ignore[arg-type]
        return cls(np.fromiter(chain.from_iterable(rows), dtype, int(offsets[-1])), offsets)

    @classmethod
    def of_text(cls, rows: Iterable[str]) -> "Ragged":
        """From text, as UTF-8."""
        return cls.of([row.encode("utf-8", "surrogatepass") for row in rows], np.uint8)

    @classmethod
    def joined(cls, parts: Sequence["Ragged"], dtype: Any) -> "Ragged":
        """The rows of all parts."""
        ends = np.cumsum([0, *(len(part.values) for part in parts)])
        offsets = [p.offsets[:-1] + end for p, end in zip(parts, ends, strict=False)]
        values = [np.zeros(0, dtype), *(part.values for part in parts)]
        return cls(np.concatenate(values), np.concatenate([*offsets, ends[-1:]]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def text(self, row: int) -> str:
        """A row of :meth:`of_text`."""
        return self[row].tobytes().decode("utf-8", "surrogatepass")


Ids = NDArray[np.int64] | Ragged


def pack_ids(ids: Sequence[int | str]) -> Ids:
    """Ids of one type, numbers or text, in arrays."""
    if ids and isinstance(ids[0], str):
        return Ragged.of_text(map(str, ids))
    return np.array(ids, dtype=np.int64)


def id_at(ids: Ids, row: int) -> int | str:
    """One of the ids."""
    return ids.text(row) if isinstance(ids, Ragged) else int(ids[row])


@dataclass(frozen=True)
class AnnotationTable:
    """A checked annotation file: M images, N annotations, K categories, in file order.

    Attributes:
        path: of the file, for messages.
        categories: K dicts with "id", "name" and, where the file has them, "frequency",
            "supercategory" and "isthing".
        id_faults: how many annotations have no id or not one of their own, and what is said about
            the first ten; not all readers need the ids.
        image_ids: M numbers or texts.
        sizes: ``[M, 2]`` int64, height and width in pixels.
        file_names: M texts.
        lists: ``[2 M]`` int64 rows: for each image LVIS's two lists, as positions in
            ``categories``.
        has_lists: ``[M, 2]`` bool.
        ids: N numbers or texts.
        unnumbered: ``[N]`` bool: the annotation has no id, and was given this one.
        images, labels: ``[N]`` int64: position of its image and of its category.
        boxes: ``[N, 4]`` float64, x, y, width, height in pixels, as in the file.
        areas: ``[N]`` float64, pixels; NaN where the file has none.
        crowds: ``[N]`` bool.
        kinds: ``[N]`` uint8: ``NO_MASK``, ``POLYGONS``, ``RUN_LENGTHS`` or ``DEGENERATE`` (polygons
            of which none has three points).
        polygons: P rows of float64: coordinates x, y, x, y, ... in pixels.
        polygon_rows: ``[N + 1]`` int64: where in ``polygons`` those of an annotation begin.
        run_lengths: N rows of uint8: compressed, empty where there is no such mask.
    """

    path: Path
    categories: list[dict[str, Any]]
    id_faults: tuple[int, list[str]]
    image_ids: Ids
    sizes: NDArray[np.int64]
    file_names: Ragged
    lists: Ragged
    has_lists: NDArray[np.bool_]
    ids: Ids
    unnumbered: NDArray[np.bool_]
    images: NDArray[np.int64]
    labels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]
    kinds: NDArray[np.uint8]
    polygons: Ragged
    polygon_rows: NDArray[np.int64]
    run_lengths: Ragged

    @cached_property
    def names(self) -> dict[Any, str]:
        """Category id -> name, in file order."""
        return {entry["id"]: entry["name"] for entry in self.categories}

    def annotation_name(self, row: int) -> str:
        """What a message calls an annotation."""
        number = "(without id)" if self.unnumbered[row] else id_at(self.ids, row)
        return f"annotation {number} of image {id_at(self.image_ids, int(self.images[row]))}"

    def box_text(self, row: int) -> str:
        """What a message says of a box."""
        return f"[{', '.join(f'{value:.15g}' for value in self.boxes[row].tolist())}]"

    def polygons_of(self, row: int) -> list[list[float]]:
        """The polygons of an annotation."""
        first, end = self.polygon_rows[row : row + 2].tolist()
        offsets = self.polygons.offsets[first : end + 1].tolist()
        values = self.polygons.values
        return [values[a:b].tolist() for a, b in pairwise(offsets)]

    def run_lengths_of(self, row: int) -> dict[str, Any]:
        """The run-length mask of an annotation, compressed."""
        size = self.sizes[self.images[row]].tolist()
        return {"size": size, "counts": self.run_lengths[row].tobytes()}

    def image_entry(self, position: int) -> dict[str, Any]:
        """An entry of the list "images": what evaluations read of it."""
        height, width = self.sizes[position].tolist()
        entry = {"id": id_at(self.image_ids, position), "height": height, "width": width}
        return entry | self.image_lists(position)

    def image_lists(self, position: int) -> dict[str, Any]:
        """LVIS's lists of an image, those that it has; category ids of the file."""
        ids = [entry["id"] for entry in self.categories] if self.has_lists[position].any() else []
        return {
            key: [ids[label] for label in self.lists[2 * position + i]]
            for i, key in enumerate(LVIS_LISTS)
            if self.has_lists[position, i]
        }

    def annotation(self, row: int) -> dict[str, Any]:
        """An entry of the list "annotations": what pycocotools makes of the file.

        The mask of a degenerate polygon is empty: nothing can find the object.
        """
        entry: dict[str, Any] = {
            "id": id_at(self.ids, row),
            "image_id": id_at(self.image_ids, int(self.images[row])),
            "category_id": self.categories[self.labels[row]]["id"],
            "bbox": self.boxes[row].tolist(),
            "iscrowd": int(self.crowds[row]),
        }
        if self.kinds[row] == RUN_LENGTHS:
            entry["segmentation"] = self.run_lengths_of(row)
        elif self.kinds[row] == DEGENERATE:
            height, width = self.sizes[self.images[row]].tolist()
            nothing = {"size": [height, width], "counts": [height * width]}
            entry["segmentation"] = mask_util.frPyObjects(nothing, height, width)
        elif self.kinds[row] == POLYGONS:
            entry["segmentation"] = self.polygons_of(row)
        if np.isfinite(self.areas[row]):
            entry["area"] = float(self.areas[row])
        return entry

    def coco_data(self) -> dict[str, Any]:
        """The three lists of the file, as evaluations read them."""
        return {
            "images": [self.image_entry(i) for i in range(len(self.sizes))],
            "annotations": [self.annotation(row) for row in range(len(self.images))],
            "categories": [dict(entry) for entry in self.categories],
        }

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """All arrays, by name; :func:`from_arrays` is the way back."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Ragged):
                yield f"{field.name}.values", value.values
                yield f"{field.name}.offsets", value.offsets
            elif isinstance(value, np.ndarray):
                yield field.name, value


def from_arrays(
    path: Path,
    categories: list[dict[str, Any]],
    id_faults: tuple[int, list[str]],
    arrays: dict[str, NDArray[Any]],
) -> AnnotationTable:
    """Put a table together; see :meth:`AnnotationTable.arrays`."""
    found: dict[str, Any] = {}
    for field in fields(AnnotationTable)[3:]:
        if field.name in arrays:
            found[field.name] = arrays[field.name]
        else:
            parts = (arrays[f"{field.name}.{part}"] for part in ("values", "offsets"))
            found[field.name] = Ragged(*parts)
    return AnnotationTable(path, categories, id_faults, **found)
