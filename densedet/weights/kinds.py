"""What a file of weights is, told by its first bytes, and the remedy where it is none."""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from densedet.errors import CheckpointError
from densedet.files import check_regular

Kind = Literal["torch", "legacy", "pickle", "safetensors", "unknown"]

# The pickled number that torch's format before the zip (torch < 1.6) begins with.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_UNPACK = "unpack it and give the file of weights inside"
_POINTER = (
    "a pointer of git-lfs, not the weights",
    "run `git lfs pull` in its repository, or download the file itself",
)
_PAGE = ("a web page, not weights", "open the address in a browser to see why, and download again")
_PROGRAM = ("a program of torch.export, not weights", "give the checkpoint that it was made from")
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", *_POINTER),
    (b"\x1f\x8b\x08", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a rar archive", _UNPACK),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes it", "save the weights from torch"),
    (b"\x93NUMPY", "an array of NumPy", "save named weights: torch.save(model.state_dict(), path)"),
    (b"GGUF", "a GGUF file", "take the weights in the format of torch or safetensors"),
)


def require_file(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError unless this is a regular file, before anything opens it."""
    try:
        check_regular(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such checkpoint file; check the path or download it"
        ) from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path}: a folder; name the checkpoint file in it") from error
    except OSError as error:
        raise CheckpointError(f"{path}: no checkpoint file ({error.strerror})") from error


def file_kind(path: str | os.PathLike[str]) -> Kind:
    """What a file is by its content, whatever its name says.

    Returns:
        "torch" (a zip of ``torch.save`` or a TorchScript archive), "legacy" (of torch < 1.6),
        "pickle" (of another program), "safetensors", or "unknown", which may be a damaged one.

    Raises:
        CheckpointError: it is missing, empty, or something that holds no weights for densedet; the
            message says what and the remedy.
    """
    require_file(path)
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(damaged(path, error)) from error
    if not head:
        raise CheckpointError(damaged(path, "the file is empty"))
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"  # first: its length may begin like any other file
    _refuse_others(path, head)
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head.startswith(_LEGACY) or _LEGACY.startswith(head):
        return "legacy"
    return "pickle" if head[0] == 0x80 and head[1] in range(2, 6) else "unknown"


def _refuse_others(path: object, head: bytes) -> None:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = [(what, remedy) for magic, what, remedy in _OTHERS if head.startswith(magic)]
    if text.startswith((b"<!doctype html", b"<html", b"<?xml")):
        known.append(_PAGE)
    if text.startswith(b"{"):
        known.append(("JSON text, not weights", "give the file of weights itself"))
    if head[257:262] == b"ustar":
        known.append(("a tar archive", _UNPACK))
    for what, remedy in known:
        raise CheckpointError(f"{path}: {what}; {remedy}")


def refuse_other_archives(path: object, names: Iterable[str]) -> None:
    """Raise CheckpointError if these are the names in a zip that is none of ``torch.save``."""
    names = list(names)
    ends = {name.rpartition("/")[2] for name in names}
    if "data.pkl" in ends:
        return
    what, remedy = "a zip archive without weights of torch", _UNPACK
    if {"archive_format", "serialized_exported_program.json"} & ends:
        what, remedy = _PROGRAM
    elif any(name.endswith(".npy") for name in ends):
        what = "an archive of NumPy (.npz)"
        remedy = "save named weights: torch.save(model.state_dict(), path)"
    raise CheckpointError(f"{path}: {what}; {remedy}")


def is_torchscript(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI releases CLIP."""
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # from a damaged archive whatever happens; its reader says what is wrong
        return False


def damaged(path: object, reason: object) -> str:
    """The message on a file that cannot be read to its end, or whose checksum is not its own."""
    first = (str(reason).strip() or type(reason).__name__).splitlines()[0].split(". ")[0]
    return f"{path}: truncated or not a checkpoint ({first}); download or export it again"
