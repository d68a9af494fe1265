"""Reading one matrix of numbers from a MATLAB file of version 5, which old data sets come in.

Format: "MAT-File Format", The MathWorks: a header of 128 bytes, then tagged elements, each of them
compressed or not.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from densedet.errors import DatasetError
from densedet.files import check_regular

_COMPRESSED, _MATRIX = 15, 14
_TYPES = MappingProxyType(
    {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
)


def read_mat_matrix(path: str | os.PathLike[str], name: str) -> NDArray[np.number]:
    """Read a two-dimensional array of real numbers.

    Args:
        path: a MATLAB file of version 5 to 7, not 7.3.
        name: of the variable.

    Returns:
        [rows, columns], in the type that the numbers have in the file.

    Raises:
        DatasetError: the file is missing, corrupt or of another format, or has no such variable.
    """
    try:
        check_regular(path)
        data = Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    if data[126:128] not in (b"IM", b"MI"):
        raise DatasetError(f"{path} is no MATLAB file of version 5 to 7; unpack its archive again")
    order = "<" if data[126:128] == b"IM" else ">"
    try:
        for kind, content in _elements(data[128:], order):
            if kind == _COMPRESSED:
                kind, content = next(_elements(zlib.decompress(content), order))
            if kind == _MATRIX:
                found, matrix = _matrix(content, order, name)
                if found:
                    return matrix
    except (zlib.error, struct.error, KeyError, ValueError, StopIteration) as error:
        raise DatasetError(
            f"{path} is truncated or corrupt ({error!r}); unpack its archive again"
        ) from error
    raise DatasetError(f"{path} has no variable {name!r}; it belongs to another data set")


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """The type and the content of each element; small ones have both in one tag of 8 bytes."""
    position = 0
    while position < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        start = position + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
            position += 8
        else:
            # what is compressed is not padded to a multiple of 8 bytes
            position = start + (size if kind == _COMPRESSED else -(-size // 8) * 8)
        if start + size > len(data):
            raise ValueError("an element reaches over the end")
        yield kind, data[start : start + size]


def _matrix(content: bytes, order: str, name: str) -> tuple[bool, NDArray[np.number]]:
    """Whether the variable has this name; its numbers."""
    elements = _elements(content, order)
    next(elements)  # flags
    shape = np.frombuffer(next(elements)[1], f"{order}i4")
    if next(elements)[1].decode("latin-1") != name:
        return False, np.empty(0)
    kind, numbers = next(elements)
    array = np.frombuffer(numbers, order + _TYPES[kind]).reshape(shape, order="F")
    if array.ndim != 2:
        raise ValueError(f"{name} has {array.ndim} dimensions instead of 2")
    return True, array
