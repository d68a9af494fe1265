"""Reading weights as data: nothing of a file is executed, and what has a checksum is compared."""

import logging
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from densedet.errors import CheckpointError
from densedet.weights.digests import SHA256, PathLike, StateDict, content_digest
from densedet.weights.kinds import damaged, file_kind, refuse_other_archives

_LOG = logging.getLogger(__name__)
_ASKS_FOR_CODE = re.compile(r"unsupported (global|class)|unrecognized function", re.IGNORECASE)
_MAX_HEADER = 16 << 20  # bytes; of released files the longest are below 1 MiB
_MAX_TENSORS = 20_000
_MAX_UNPACKED = 64 << 20  # bytes; only the source text in a TorchScript archive is packed


def read_weights(path: PathLike) -> tuple[Any, dict[str, str]]:
    """Read a file of torch or safetensors, told apart by the content: what it holds, its metadata.

    Raises:
        CheckpointError: as from `read_safetensors` and `read_torch_file`.
    """
    kind = file_kind(path)
    if kind == "safetensors" or (kind == "unknown" and Path(path).suffix == ".safetensors"):
        return read_safetensors(path)
    if Path(path).suffix == ".safetensors":
        raise CheckpointError(
            f"{path}: a file of torch.save or a pickle, not safetensors as its name says; rename "
            "it to .pt, or take the safetensors file"
        )
    return read_torch_file(path), {}


def read_safetensors(path: PathLike, check: bool = True) -> tuple[StateDict, dict[str, str]]:
    """Read a .safetensors file: names -> CPU tensors, and its metadata.

    Args:
        path: the file.
        check: whether to compare the sha256 of the content with that in the metadata, which
            `densedet.weights.write_safetensors` writes (files of others have none).

    Raises:
        CheckpointError: the file is missing, truncated, changed, of another format, or of more
            tensors than any model has.
    """
    _check_safetensors(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(damaged(path, error)) from error
    if check and SHA256 in metadata and content_digest(state, metadata) != metadata[SHA256]:
        raise CheckpointError(damaged(path, "its content does not have the sha256 that it names"))
    return state, metadata


def _check_safetensors(path: PathLike) -> None:
    kind = file_kind(path)
    if kind not in ("safetensors", "unknown"):
        raise CheckpointError(damaged(path, "a file of torch.save or a pickle, not safetensors"))
    if kind == "unknown":  # safetensors' own reader says what is wrong
        return
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _MAX_HEADER + 1))
    if len(header) > _MAX_HEADER or header.count(b'"data_offsets"') > _MAX_TENSORS:
        raise CheckpointError(
            f"{path}: names more than {_MAX_TENSORS} tensors, or has a header of more than "
            f"{_MAX_HEADER >> 20} MiB: no model has so many, and it is not read"
        )


def read_torch_file(path: PathLike) -> Any:
    """Read what ``torch.save`` wrote, as data: tensors, numbers, strings and containers of them.

    Raises:
        CheckpointError: the file is missing, truncated or changed, is of another format, or reading
            it would run code.
    """
    kind = file_kind(path)
    if kind == "safetensors":
        raise CheckpointError(f"{path}: a safetensors file; rename it to .safetensors")
    if kind == "torch":
        check_archive(path)
    if kind == "legacy":
        _LOG.info(
            "%s has no checksum (a file of torch < 1.6): compare it with a digest of its source, "
            "or save it again with torch.save",
            path,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the protocol of a plain pickle, which is refused
            mapped = True if kind == "torch" else None
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # from a damaged file the unpickler raises whatever happens
        raise CheckpointError(_refusal(path, kind, error)) from error


def check_archive(path: PathLike) -> None:
    """Compare every entry of a zip of torch with its CRC-32, which torch itself does not.

    Raises:
        CheckpointError: one differs, the archive is cut short, or it is not one of torch.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            refuse_other_archives(path, archive.namelist())
            packed = [e for e in entries if e.compress_type != zipfile.ZIP_STORED]
            stored = sum(entry.compress_size for entry in entries)
            unpacked = sum(entry.file_size for entry in packed)
            if stored > Path(path).stat().st_size or unpacked > _MAX_UNPACKED:
                raise CheckpointError(
                    f"{path}: an archive that unpacks to more than it holds, as torch.save writes "
                    "none; download it from its source"
                )
            # torch.serialization.set_crc32_options(False) leaves zeros everywhere.
            bad = archive.testzip() if any(entry.CRC for entry in entries) else None
    except CheckpointError:
        raise
    except Exception as error:  # from a damaged archive zipfile raises whatever happens
        raise CheckpointError(damaged(path, error)) from error
    if bad is not None:
        raise CheckpointError(damaged(path, f"the CRC-32 of {bad} is not that of its content"))


def _refusal(path: PathLike, kind: str, error: Exception) -> str:
    asks = isinstance(error, pickle.UnpicklingError) and _ASKS_FOR_CODE.search(str(error))
    name = re.search(r"GLOBAL:? ([\w.]+)", str(error)) if asks else None
    would = f"reading it would run code from the file{f' ({name[1]})' if name else ''}, which is"
    if kind == "pickle":
        return (
            f"{path}: {would} never done: it is a plain pickle, as the .pkl files of Detectron2's "
            "model zoo are; where you trust it, save plain tensors once: torch.save({k: "
            "torch.as_tensor(v) for k, v in pickle.load(open(FILE, 'rb'))['model'].items()}, "
            "'weights.pth')"
        )
    if asks:
        return (
            f"{path}: {would} never done; in the program that wrote it, save plain tensors: "
            "torch.save(model.state_dict(), path)"
        )
    # torch's own message advises to switch the protection off: it is not passed on.
    if isinstance(error, pickle.UnpicklingError):
        return damaged(path, "its content is not a torch file's")
    return damaged(path, error)
