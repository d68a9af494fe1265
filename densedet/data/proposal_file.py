"""Reading region proposals: Detectron2's pickle, as data only, or a COCO-format file."""

import codecs
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from densedet.data.annotation_file import is_id, whole
from densedet.data.proposal_pickle import proposal_error as _error
from densedet.data.proposal_pickle import read_pickle
from densedet.errors import DatasetError
from densedet.files import check_regular

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
        check_regular(name)
        with name.open("rb") as file:
            is_json = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[")
            file.seek(0)
            return (json.load(file) if is_json else read_pickle(file, name)), is_json
    except FileNotFoundError as error:
        raise DatasetError(f"proposal file {name} does not exist{hint and '; '}{hint}") from error
    except OSError as error:
        raise DatasetError(f"proposal file {name} cannot be read: {error.strerror}") from error
    except DatasetError:
        raise
    except (ValueError, RecursionError) as error:
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
    if not isinstance(mode, int) or mode not in (_XYXY, _XYWH):
        raise _error(path, f"has bbox_mode {mode!r:.100}; write XYXY_ABS or XYWH_ABS")
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
        image_id = whole(image_id)
        if not isinstance(image_id, int | np.integer | str):
            raise _error(path, f"has the image id {image_id!r:.100}; give numbers or text")
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
        image_id = whole(entry.get("image_id")) if isinstance(entry, dict) else None
        if not is_id(image_id) or "bbox" not in entry:
            raise _error(path, f"has {entry!r:.200}; give 'bbox' and 'image_id' (number or text)")
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
