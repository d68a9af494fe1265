"""Dataset dicts whose annotations are made from an annotation table when they are looked at.

At COCO's size the annotations of a training as Python objects take gigabytes in each process. Here
they stay in the arrays of :class:`densedet.data.annotation_table.AnnotationTable`.
"""

import io
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from numpy.typing import NDArray

from densedet.data import annotation_table as kinds
from densedet.data.annotation_table import AnnotationTable


@dataclass(frozen=True)
class RecordColumns:
    """What the annotations of a data set's records are made of.

    Attributes:
        table: of the annotation file, N annotations.
        boxes: ``[N, 4]`` float64, x, y, width, height in pixels.
        classes: ``[N]`` int64, indices in the vocabulary.
        rows: those annotations of the N that the data set has, image by image.
        masks: whether the annotations have a "segmentation".
    """

    table: AnnotationTable
    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]
    rows: NDArray[np.int64]
    masks: bool = True

    def annotations(self, rows: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """Annotations in Detectron2's standard format."""
        table = self.table
        columns = (self.boxes, self.classes, table.crowds, table.kinds)
        values = (column[rows].tolist() for column in columns)
        for row, box, index, crowd, kind in zip(rows.tolist(), *values, strict=True):
            found: dict[str, Any] = {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": index,
                "iscrowd": int(crowd),
            }
            if self.masks and kind == kinds.RUN_LENGTHS:
                found["segmentation"] = table.run_lengths_of(row)
            elif self.masks and kind != kinds.NO_MASK:
                found["segmentation"] = table.polygons_of(row)  # of a degenerate one none
            yield found


class ReadOnlyAnnotation(dict[str, Any]):
    """An annotation that would be made anew the next time: a change of it would be lost."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "the annotations of a data set's record are read-only; change those of a copy: "
            "copy.deepcopy(record)"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    pop = popitem = clear = update = setdefault = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # what is copied or pickled can be changed


class AnnotationList(Sequence[dict[str, Any]]):
    """The annotations of one record, read-only; equal to a list, and copied and pickled as one.

    Args:
        columns: of the data set.
        start, stop: where in ``columns.rows`` they are.
    """

    __slots__ = ("columns", "start", "stop")

    def __init__(self, columns: RecordColumns, start: int, stop: int) -> None:
        self.columns, self.start, self.stop = columns, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: Any) -> Any:
        rows = self.columns.rows[self.start : self.stop][index]
        found = list(map(ReadOnlyAnnotation, self.columns.annotations(np.atleast_1d(rows))))
        return found if isinstance(index, slice) else found[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(ReadOnlyAnnotation, self._plain())

    def outline(self) -> Iterator[dict[str, Any]]:
        """The "category_id" and "iscrowd" of each, much less work than the annotations."""
        rows, columns = self.columns.rows[self.start : self.stop], self.columns
        values = (columns.classes[rows].tolist(), columns.table.crowds[rows].tolist())
        for index, crowd in zip(*values, strict=True):
            yield {"category_id": index, "iscrowd": int(crowd)}

    def _plain(self) -> Iterator[dict[str, Any]]:
        return self.columns.annotations(self.columns.rows[self.start : self.stop])

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | AnnotationList) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __deepcopy__(self, _: Any) -> list[dict[str, Any]]:
        return list(self._plain())

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self._plain()),)


class PackedRecords:
    """Records in one array, without the objects that would be copied into each worker process.

    Args:
        records: dataset dicts, of which "annotations" may be an :class:`AnnotationList`.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self._columns: list[RecordColumns] = []
        texts = [self._pack(record) for record in records]
        self._ends = np.cumsum([len(text) for text in texts])
        self._values = np.frombuffer(b"".join(texts), dtype=np.uint8)

    def _pack(self, record: dict[str, Any]) -> bytes:
        stream = io.BytesIO()
        _Packer(stream, self._columns).dump(record)
        return stream.getvalue()

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = self._ends[index - 1] if index else 0
        stream = io.BytesIO(self._values[start : self._ends[index]].tobytes())
        return _Unpacker(stream, self._columns).load()


class _Packer(pickle.Pickler):
    """Writes the columns of annotations as their number in a list."""

    def __init__(self, stream: io.BytesIO, columns: list[RecordColumns]) -> None:
        super().__init__(stream, protocol=-1)
        self.columns = columns

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, RecordColumns):
            return None
        for number, known in enumerate(self.columns):
            if known is obj:
                return number
        self.columns.append(obj)
        return len(self.columns) - 1

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, AnnotationList):
            return AnnotationList, (obj.columns, obj.start, obj.stop)
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    """Reads what a :class:`_Packer` of this process wrote."""

    def __init__(self, stream: io.BytesIO, columns: list[RecordColumns]) -> None:
        super().__init__(stream)
        self.columns = columns

    def persistent_load(self, number: Any) -> Any:
        return self.columns[number]


def image_records(
    columns: RecordColumns, file_names: Sequence[str], *, lists: bool = False
) -> list[dict[str, Any]]:
    """One dataset dict for each image of a table, in file order.

    Args:
        columns: what becomes "annotations"; ``rows`` in the order of the images.
        file_names: of the images.
        lists: whether the dicts have LVIS's two lists.
    """
    table = columns.table
    of_images = np.arange(len(table.sizes) + 1)
    ends = np.searchsorted(table.images[columns.rows], of_images).tolist()
    return [
        {
            "file_name": file_name,
            "height": height,
            "width": width,
            "image_id": kinds.id_at(table.image_ids, i),
            "annotations": AnnotationList(columns, ends[i], ends[i + 1]),
            **(table.image_lists(i) if lists else {}),
        }
        for i, (file_name, (height, width)) in enumerate(
            zip(file_names, table.sizes.tolist(), strict=True)
        )
    ]
