"""Reading pickles of Detectron2's proposals as data only: nothing that they name is ever called."""

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from densedet.errors import DatasetError

_SMALL = 1 << 20  # bytes; larger ones are real, or take so long to send that they are no trap
_UNFOLDED = 10  # items for each byte of a file; one that is there once takes a byte at least


def proposal_error(path: Path, problem: str) -> DatasetError:
    """What is raised for a proposal file."""
    return DatasetError(f"proposal file {path} {problem}")


def read_pickle(file: BinaryIO, path: Path) -> Any:
    """Read numbers, strings, containers and numeric arrays; tuples and arrays of objects as lists.

    Args:
        file: at its beginning.
        path: for messages.

    Raises:
        DatasetError: it is damaged, names anything else, or refers to its parts so often that it is
            very much more than the file.
    """
    try:
        size = os.fstat(file.fileno()).st_size
        unpickler = _CarefulUnpickler if size < _SMALL else _DataUnpickler
        content = unpickler(file, encoding="latin1").load()
        return _Unfolding(_UNFOLDED * size).plain(content)
    except _Refused as error:
        raise proposal_error(
            path,
            f"asks for {error}, and to run code from a file is never done; write the proposals as "
            "plain numpy arrays, or in COCO's format",
        ) from error
    except _TooMuch as error:
        raise proposal_error(
            path,
            f"holds the same lists over and over, {error} items in all; write the boxes of each "
            "image as a numpy array",
        ) from error
    except Exception as error:  # from a damaged file the unpickler raises whatever happens
        raise proposal_error(
            path,
            f"is damaged or no proposal file ({type(error).__name__}: {error!s:.200}); write it "
            "again",
        ) from error


class _Refused(Exception):
    """The pickle names something that is not data."""


def _short(name: object) -> str:
    """Of text the first letters; a list may hold itself so often that it has no end."""
    return repr(name[:40]) if isinstance(name, str) else f"a {type(name).__name__}"


class _Dtype:
    """Stands for ``numpy.dtype`` in a pickle: real numbers, and objects in lists."""

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[biuf][1248]|O8?", name):
            raise _Refused(f"an array of type {_short(name)}")
        self.name = name
        self.order = "="

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="

    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.name)


class _Array:
    """Stands for ``numpy.ndarray`` in a pickle; numpy itself never sees what is not checked."""

    value: Any

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, dtype, by_columns, data = state
        if isinstance(data, list):
            self.value = data
            return
        raw = data.encode("latin1") if isinstance(data, str) else data
        self.value = _from_bytes(raw, dtype, shape, "F" if by_columns else "C")


def _from_bytes(data: bytes, dtype: _Dtype, shape: Sequence[int], order: str) -> np.ndarray:
    if dtype.name.startswith("O"):
        raise _Refused("an array of objects in raw memory")
    values = np.frombuffer(data, dtype.numpy())
    return values.reshape(tuple(shape), order="F" if order == "F" else "C")


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(
    data: bytes, dtype: _Dtype, shape: Sequence[int], order: str, *_: object
) -> np.ndarray:
    return _from_bytes(data, dtype, shape, order)


def _scalar(dtype: _Dtype, data: Any) -> Any:
    raw = data.encode("latin1") if isinstance(data, str) else data
    return _from_bytes(raw, dtype, (1,), "C")[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"the encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _ordered_dict() -> OrderedDict[Any, Any]:
    """Its items come one by one, as those of a dict."""
    return OrderedDict()


def _box_mode(owner: Any, name: str) -> int:
    """A member of BoxMode by its name, as some releases of Python 3.11 write it (Debian 12's)."""
    if owner is not int or name not in _BOX_MODES:
        raise _Refused(f"builtins.getattr of {_short(name)}")
    return _BOX_MODES.index(name)


_BOX_MODES = ("XYXY_ABS", "XYWH_ABS", "XYXY_REL", "XYWH_REL", "XYWHA_ABS")

_STAND_INS: Mapping[str, Any] = {
    "numpy.ndarray": _Array,
    "numpy.dtype": _Dtype,
    **{
        f"{package}.{name}": function
        for package in ("numpy.core", "numpy._core")
        for name, function in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _frombuffer),
        )
    },
    "detectron2.structures.boxes.BoxMode": int,
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,  # bytes in protocols 0 to 2
    "__builtin__.bytes": _no_bytes,
    "__builtin__.getattr": _box_mode,
    "builtins.getattr": _box_mode,
}


class _DataOnly:
    """Knows a few names, which stand for functions of this module, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if "." in name or f"{module}.{name}" not in _STAND_INS:
            raise _Refused(f"{module}.{name}")
        return _STAND_INS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object outside the file")


class _DataUnpickler(_DataOnly, pickle.Unpickler):
    """For large files."""


class _CarefulUnpickler(_DataOnly, pickle._Unpickler):
    """Python's own, which lets us look at a key before it is hashed.

    The hash of a tuple that holds another twice, and that a third one, takes twice as long with
    each line of the pickle, and is computed in C where nothing can interrupt it.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {**pickle._Unpickler.dispatch}

    def _check_keys(self, keys: Sequence[Any]) -> None:
        for key in keys:
            if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
                raise ValueError("a key that is tuples in a tuple")


def _checking(code: bytes, keys: slice) -> None:
    """Let an opcode look at the keys among what it takes from the stack."""
    load = _CarefulUnpickler.dispatch[code[0]]

    def checked(self: _CarefulUnpickler) -> None:
        self._check_keys(self.stack[keys])
        load(self)

    _CarefulUnpickler.dispatch[code[0]] = checked


_checking(pickle.SETITEM, slice(-2, -1))
for _code in (pickle.SETITEMS, pickle.DICT):
    _checking(_code, slice(0, None, 2))
for _code in (pickle.ADDITEMS, pickle.FROZENSET):
    _checking(_code, slice(None))


class _TooMuch(Exception):
    """A small pickle is very much, because it refers to its parts many times."""


class _Unfolding:
    """Arrays for their stand-ins, also inside containers.

    Args:
        most: the items that there may be. A list that holds another twice, and that a third one,
            doubles them with each line of the pickle.
    """

    def __init__(self, most: int) -> None:
        self.left = self.most = most

    def plain(self, value: Any) -> Any:
        """Raise _TooMuch for more items than there may be."""
        self.left -= 1
        if self.left < 0:
            raise _TooMuch(f"more than {self.most:,}")
        if isinstance(value, _Array):
            return self.plain(value.value)
        if isinstance(value, Mapping):
            return {key: self.plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(item) for item in value]
        return value
