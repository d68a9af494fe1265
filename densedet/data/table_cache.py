"""One copy of an annotation file for all that read it: in a process, and on a machine.

Within a process a file is decoded and checked once. Where several processes train together, the
first one on a machine writes the arrays to the cache folder, and the others map them.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from densedet.clip.class_embeddings import default_cache_dir
from densedet.data.annotation_reader import read_table
from densedet.data.annotation_table import AnnotationTable, from_arrays
from densedet.errors import OutputError
from densedet.files import atomic_folder, writing

try:
    import fcntl
except ImportError:  # Windows: each process reads the file itself
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_VERSION = 1  # of the arrays
_OUTLINE = "table.json"
_MAPPED = 1 << 16  # bytes


def annotation_table(json_file: str | os.PathLike[str], hint: str = "") -> AnnotationTable:
    """What :func:`densedet.data.annotation_reader.read_table` makes of a file, read once.

    The file is read again when its size or its time of change is another.

    Raises:
        DatasetError: see there.
    """
    path = Path(json_file)
    try:
        state = path.stat()
    except OSError:
        return read_table(path, hint)  # which says what is wrong
    return _table(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4)
def _table(path: Path, size: int, time: int) -> AnnotationTable:
    base = default_cache_dir()
    if comm.get_world_size() == 1 or base is None or fcntl is None:
        return read_table(path)
    key = json.dumps([_VERSION, str(path.absolute()), size, time])
    folder = base.with_name("records") / hashlib.sha256(key.encode()).hexdigest()[:32]
    try:
        with _alone(folder.with_suffix(".lock")):
            return load_table(folder, path) or _write(folder, read_table(path))
    except OutputError as error:  # its message names the folder
        logger.warning("each process reads %s itself: %s", path, error)
        return read_table(path)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in the block."""
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
    with file:
        yield


def _write(folder: Path, table: AnnotationTable) -> AnnotationTable:
    """Write a table, to be removed when this process ends; what is mapped meanwhile stays."""
    save_table(folder, table)
    Finalize(None, _remove, (folder, os.getpid()), exitpriority=0)
    return load_table(folder, table.path) or table


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in what was forked from it
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_suffix(".lock").unlink(missing_ok=True)


def save_table(folder: Path, table: AnnotationTable) -> None:
    """Write a table as one ``.npy`` file an array, and their digests.

    Raises:
        OutputError: the folder cannot be written.
    """
    digests = {}
    with atomic_folder(folder) as temporary, writing(folder):
        for name, array in table.arrays():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
            digests[name] = _digest(array)
        outline = {
            "categories": table.categories,
            "id_faults": table.id_faults,
            "digests": digests,
        }
        (temporary / _OUTLINE).write_text(json.dumps(outline), encoding="utf-8")


def load_table(folder: Path, path: Path) -> AnnotationTable | None:
    """Map what :func:`save_table` wrote; None if it is not there or damaged.

    Args:
        folder: of the arrays.
        path: of the annotation file, for messages.
    """
    try:
        outline = json.loads((folder / _OUTLINE).read_bytes())
        arrays: dict[str, Any] = {}
        for name, digest in outline["digests"].items():
            file = folder / f"{name}.npy"
            mode: Any = "r" if file.stat().st_size > _MAPPED else None  # nothing cannot be mapped
            arrays[name] = np.load(file, mmap_mode=mode, allow_pickle=False)
            if _digest(arrays[name]) != digest:
                raise ValueError(f"{name}.npy is damaged")
        return from_arrays(path, outline["categories"], tuple(outline["id_faults"]), arrays)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError) as error:
        logger.warning("the copy of %s in %s is not used: %s", path, folder, error)
        return None


def _digest(array: Any) -> str:
    content = np.ascontiguousarray(array).data if array.size else b""
    return hashlib.sha256(content).hexdigest()
