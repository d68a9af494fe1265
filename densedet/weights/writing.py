"""Writing weights: whole or not at all, with a checksum in every file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from densedet.files import atomic_path, writing
from densedet.weights.digests import SHA256, PathLike, StateDict, content_digest


def write_safetensors(path: PathLike, state: StateDict, metadata: Mapping[str, str]) -> None:
    """Write names -> tensors and metadata as a .safetensors file, whole or not at all.

    The metadata get a sha256 of all that is in the file, which `read_safetensors` compares. The
    same content gives the same bytes.

    Raises:
        OutputError: it cannot be written, also where the disk is full.
    """
    kept = {**metadata, SHA256: content_digest(state, metadata)}
    with atomic_path(path) as temporary, writing(path, SafetensorError):
        save_file(state, temporary, metadata=kept)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a file into the order of their names; safetensors' own is by chance."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def write_torch_file(path: PathLike, content: Any) -> None:
    """Write with ``torch.save``, whole or not at all.

    Raises:
        OutputError: it cannot be written, also where the disk is full.
    """
    with atomic_path(path) as temporary, writing(path), open(temporary, "wb") as file:
        kept: Any = _FirstError(file)
        torch.save(content, kept)
        if kept.error is not None:
            raise kept.error


class _FirstError:
    """A file for torch's writer of archives, which would end the process at an error of the disk.

    Attributes:
        error: the first one; nothing is written after it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """The file is flushed when it is closed."""
