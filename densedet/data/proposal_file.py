"""Reading region proposals: Detectron2's pickle, as data only, or a COCO-format file."""

import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from densedet.data.annotation_file import is_id
from densedet.errors import DatasetError

_OLD_KEYS = {"indexes": "ids", "scores": "objectness_logits"}  # of Detectron's own files
_XYXY, _XYWH = 0, 1  # Detectron2's BoxMode


class Proposals(NamedTuple):
    """Region proposals of one image, by falling score.

    Attributes:
        boxes: ``[K, 4]``, (x0, y0, x1, y1) in pixels; float32 if the file's are, else float64.
        scores: likewise ``[K]``; None if the file has none: then the order is the file's.
    """

    boxes: np.ndarray
    scores: np.ndarray | None


def read_proposal_file(path: str | os.PathLike[str], hint: str = "") -> dict[str, Proposals]:
    """Read region proposals.

    Three formats are told apart by their content: Detectron2's pickled dict of "ids", "boxes",
    "objectness_logits" and perhaps "bbox_mode" (or the older keys "indexes" and "scores"); a
    COCO-format results list; a COCO-format object with "annotations". From a pickle only numbers,
    strings, containers, numeric arrays and ``BoxMode`` are read; no function or class that it names
    is ever called or imported.

    Args:
        path: the file.
        hint: added to the message if the file is missing: where it comes from.

    Returns:
        Image id, as a string -> its proposals.

    Raises:
        DatasetError: the file is missing, damaged, of another format, or holds anything else; an
            image occurs twice, or a box or score is not finite. The message names the file.
    """
    name = Path(path)
    content, is_json = _read(name, hint)
    return _from_annotations(content, name) if is_json else _from_detectron2(content, name)


def lists_images(path: str | os.PathLike[str]) -> bool:
    """Whether a proposal file says which images there are: a COCO-format object with "images".

    Raises:
        DatasetError: the file is missing or damaged; see :func:`read_proposal_file`.
    """
    content, is_json = _read(Path(path), "")
    return is_json and isinstance(content, dict) and "images" in content


def _read(name: Path, hint: str) -> tuple[Any, bool]:
    """The content, and whether it is that of a JSON file."""
    try:
        with name.open("rb") as file:
            is_json = file.read(64).lstrip()[:1] in (b"{", b"[")
            file.seek(0)
            return (json.load(file) if is_json else _read_pickle(file, name)), is_json
    except FileNotFoundError as error:
        raise DatasetError(f"proposal file {name} does not exist{hint and '; '}{hint}") from error
    except OSError as error:
        raise DatasetError(f"proposal file {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"proposal file {name} is not valid JSON ({error}); it may be cut off: fetch or write "
            "it again"
        ) from error


def _from_detectron2(content: Any, path: Path) -> dict[str, Proposals]:
    if not isinstance(content, dict):
        raise _error(path, "holds no dict; give a proposal file of Detectron2")
    content = {_OLD_KEYS.get(key, key): value for key, value in content.items()}
    missing = {"ids", "boxes", "objectness_logits"} - content.keys()
    if missing:
        raise _error(path, f"lacks {', '.join(sorted(missing))}; give a file of Detectron2")
    ids, boxes, scores = (content[key] for key in ("ids", "boxes", "objectness_logits"))
    mode = content.get("bbox_mode", _XYXY)
    if mode not in (_XYXY, _XYWH):
        raise _error(path, f"has bbox_mode {mode!r}; write XYXY_ABS or XYWH_ABS")
    if not all(isinstance(part, list | tuple | np.ndarray) for part in (ids, boxes, scores)):
        raise _error(path, "has ids, boxes or scores that are no list; give a file of Detectron2")
    if not len(ids) == len(boxes) == len(scores):
        raise _error(
            path,
            f"has {len(ids)} ids, {len(boxes)} arrays of boxes and {len(scores)} of scores; each "
            "image has one of each",
        )
    found: dict[str, Proposals] = {}
    for image_id, image_boxes, image_scores in zip(ids, boxes, scores, strict=True):
        if str(image_id) in found:
            raise _error(path, f"has image {image_id} twice; write each image once")
        found[str(image_id)] = _sorted(image_id, image_boxes, image_scores, mode, path)
    return found


def _from_annotations(content: Any, path: Path) -> dict[str, Proposals]:
    entries = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise _error(path, "has no list 'annotations'; give a COCO-format file or a results list")
    grouped: dict[str, tuple[Any, list[Any], list[Any]]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not is_id(entry.get("image_id")) or "bbox" not in entry:
            raise _error(path, f"has {entry!r:.200}; give 'bbox' and 'image_id' (number or text)")
        image_id = entry["image_id"]
        first, boxes, scores = grouped.setdefault(str(image_id), (image_id, [], []))
        if first != image_id:
            raise _error(path, f"has image {image_id} as number and as text; write its id one way")
        boxes.append(entry["bbox"])
        scores.append(entry.get("score"))
    return {
        key: _sorted(key, boxes, None if None in scores else scores, _XYWH, path)
        for key, (_, boxes, scores) in grouped.items()
    }


def _sorted(image_id: Any, boxes: Any, scores: Any | None, mode: int, path: Path) -> Proposals:
    try:
        found = _floats(boxes)
        found = found.reshape(0, 4) if found.size == 0 else found
        values = None if scores is None else _floats(scores)
    except (TypeError, ValueError, OverflowError) as error:
        raise _error(path, f"has boxes of image {image_id} that are no numbers: {error}") from error
    if found.shape[1:] != (4,) or (values is not None and values.shape != found.shape[:1]):
        raise _error(
            path,
            f"has boxes {found.shape} and scores {None if values is None else values.shape} for "
            f"image {image_id}; they must be [K, 4] and [K]",
        )
    if not (np.isfinite(found).all() and (values is None or np.isfinite(values).all())):
        raise _error(path, f"has a box or score of image {image_id} that is not finite; mend it")
    if mode == _XYWH:
        found[:, 2:] += found[:, :2]
    if values is None:
        return Proposals(found, None)
    order = np.argsort(-values, kind="stable")
    return Proposals(found[order], values[order])


def _floats(values: Any) -> np.ndarray:
    """A copy in float64, or in float32 if the values are an array of it."""
    kept = isinstance(values, np.ndarray) and values.dtype == np.float32
    return np.array(values, dtype=np.float32 if kept else np.float64)


def _error(path: Path, problem: str) -> DatasetError:
    return DatasetError(f"proposal file {path} {problem}")


def _read_pickle(file: BinaryIO, path: Path) -> Any:
    try:
        return _plain(_DataUnpickler(file, encoding="latin1").load())
    except _Refused as error:
        raise _error(
            path,
            f"asks for {error}, and to run code from a file is never done; write the proposals as "
            "plain numpy arrays, or in COCO's format",
        ) from error
    except Exception as error:  # from a damaged file the unpickler raises whatever happens
        raise _error(
            path,
            f"is damaged or no proposal file ({type(error).__name__}: {error}); write it again",
        ) from error


class _Refused(Exception):
    """The pickle names something that is not data."""


class _Dtype:
    """Stands for ``numpy.dtype`` in a pickle: real numbers, and objects in lists."""

    def __init__(self, name: str, *_: object) -> None:
        if not re.fullmatch(r"[biuf][1248]|O8?", str(name)):
            raise _Refused(f"an array of type {str(name)[:40]!r}")
        self.name = str(name)
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


def _box_mode(owner: Any, name: str) -> int:
    """A member of BoxMode by its name, as some releases of Python 3.11 write it (Debian 12's)."""
    if owner is not int or name not in _BOX_MODES:
        raise _Refused(f"builtins.getattr of {str(name)[:40]!r}")
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
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,  # bytes in protocols 0 to 2
    "__builtin__.bytes": _no_bytes,
    "__builtin__.getattr": _box_mode,
    "builtins.getattr": _box_mode,
}


class _DataUnpickler(pickle.Unpickler):
    """Knows a few names, which stand for functions of this module, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        if "." in name or f"{module}.{name}" not in _STAND_INS:
            raise _Refused(f"{module}.{name}")
        return _STAND_INS[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused("an object outside the file")


def _plain(value: Any) -> Any:
    """Arrays for their stand-ins, also inside containers."""
    if isinstance(value, _Array):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
