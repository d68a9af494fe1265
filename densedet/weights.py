"""Weights in files and models: read as data, loaded whole or not at all, and their digests."""

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from densedet.errors import CheckpointError
from densedet.files import atomic_path, writing

StateDict = dict[str, Tensor]
PathLike = str | os.PathLike[str]

_ASKS_FOR_CODE = re.compile(r"unsupported (global|class)|unrecognized function", re.IGNORECASE)


def read_safetensors(path: PathLike) -> tuple[StateDict, dict[str, str]]:
    """Read a .safetensors file: names -> CPU tensors, and its metadata.

    Raises:
        CheckpointError: the file is missing, truncated or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return state, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(damaged(path, error)) from error


def read_torch_file(path: PathLike) -> Any:
    """Read what ``torch.save`` wrote, as data: tensors, numbers, strings and containers of them.

    Raises:
        CheckpointError: the file is missing or truncated, or reading it would run code.
    """
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None
        )
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch the protection off: it is not passed on.
        if _ASKS_FOR_CODE.search(str(error)):
            name = re.search(r"GLOBAL:? ([\w.]+)", str(error))
            raise CheckpointError(
                f"{path}: reading it would run code from the file"
                f"{f' ({name[1]})' if name else ''}, which is never done; in the program that "
                "wrote it, save plain tensors: torch.save(model.state_dict(), path)"
            ) from error
        raise CheckpointError(damaged(path, "its content is not a torch file's")) from error
    except Exception as error:  # from a damaged file the unpickler raises whatever happens
        raise CheckpointError(damaged(path, error)) from error


def write_safetensors(path: PathLike, state: StateDict, metadata: dict[str, str]) -> None:
    """Write names -> tensors and metadata as a .safetensors file, whole or not at all.

    Raises:
        OutputError: it cannot be written, also where the disk is full.
    """
    with atomic_path(path) as temporary, writing(path, SafetensorError):
        save_file(state, temporary, metadata=metadata)


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


def damaged(path: PathLike, reason: object) -> str:
    """The message on a file that cannot be read to its end."""
    first = (str(reason).strip() or type(reason).__name__).splitlines()[0].split(". ")[0]
    return f"{path}: truncated or not a checkpoint ({first}); download or export it again"


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Load ``state`` if it fits ``module`` exactly; otherwise change nothing.

    Args:
        module: the receiver; values are copied into its parameters and buffers, keeping their
            dtype.
        state: names -> tensors, as for :func:`fit_strictly`.
        source: what to call the weights in the message (usually the file).

    Raises:
        CheckpointError: names the missing, the unexpected and the differently shaped keys.
    """
    # What is shared may have one of its names.
    module.load_state_dict(fit_strictly(module, state, source), strict=False)


def fit_strictly(module: nn.Module, state: Mapping[str, Tensor], source: object) -> StateDict:
    """Return ``state`` in the shapes of ``module``, which is not changed (and may be on "meta").

    Args:
        module: what the names and shapes are compared with.
        state: names -> tensors; an array of one element fits any other shape of one element. Of
            a parameter that the module holds under two names, one is enough.
        source: what to call the weights in the message (usually the file).

    Raises:
        CheckpointError: names the missing, the unexpected and the differently shaped keys.
    """
    own = module.state_dict(keep_vars=True)
    fitted = {name: _fitted(tensor, own.get(name)) for name, tensor in state.items()}
    given = {id(own[name]) for name in fitted if name in own}
    problems = {
        "missing": [n for n, value in own.items() if n not in fitted and id(value) not in given],
        "unexpected": [name for name in fitted if name not in own],
        "of another shape": [
            f"{name} {tuple(t.shape)} for {tuple(own[name].shape)}"
            for name, t in fitted.items()
            if name in own and t.shape != own[name].shape
        ],
    }
    found = [f"{len(keys)} {kind}: {abbreviated(keys)}" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{source}: does not fit {type(module).__name__}, nothing was loaded; "
            f"{'; '.join(found)}. Choose the model that the weights belong to"
        )
    return fitted


def _fitted(tensor: Tensor, own: Tensor | None) -> Tensor:
    """Let ``[]`` and ``[1]`` pass for each other (``logit_scale`` in different versions)."""
    single = own is not None and tensor.numel() == 1 == own.numel()
    return tensor.reshape(own.shape) if single and own is not None else tensor


def abbreviated(keys: list[str], limit: int = 4) -> str:
    """The first keys of a list, and "..." for the others."""
    return ", ".join(keys[:limit]) + (", ..." if len(keys) > limit else "")


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, dtypes, shapes and values, independent of the order of the entries."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: PathLike) -> str:
    """sha256 (hex) of a file's bytes; raises CheckpointError if there is no such file."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint file; check the path or download it")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
