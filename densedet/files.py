"""Reading regular files only, and writing so that a reader never sees half of a file."""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from densedet.errors import OutputError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise before a path is opened that is no regular file, whose reading may never end.

    Links are followed. What is raised has a ``strerror`` for the message of the caller.

    Raises:
        FileNotFoundError: there is nothing.
        IsADirectoryError: it is a folder.
        OSError: it is a named pipe, a socket or a device, or cannot be looked at.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return
    name = os.fspath(path)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    kind = next((text for test, text in _KINDS if test(mode)), "something else")
    raise OSError(errno.EINVAL, f"{kind}, not a regular file", name)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it onto ``path`` if the block succeeds.

    Missing parent folders are made. If the block raises, the temporary file is removed and an
    existing file at ``path`` is left as it was.

    Raises:
        OutputError: the folder cannot be made or written, or ``path`` cannot be replaced. It is an
            ``OSError`` too; what the block raises is left as it is.
    """
    target = Path(path)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(target.suffix, f".{target.stem}.", target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        with writing(target):
            temporary.chmod(0o666 & ~umask)
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder; move it onto ``path`` if the block succeeds.

    Missing parent folders are made. What is at ``path``, a folder or a link to one, is moved out of
    the way whole and removed afterwards; a link's own folder stays. If the block raises, the
    temporary folder is removed and what is at ``path`` is left as it was.

    Raises:
        OutputError: the folder cannot be made, or ``path`` cannot be replaced. What the block
            raises is left as it is.
    """
    target = Path(path)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    with temporary as name:
        folder = Path(name) / "new"
        folder.mkdir()
        yield folder
        with writing(target):
            _exchange(folder, target, Path(name) / "former")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all.

    Raises:
        OutputError: it cannot be written, also where the disk is full.
    """
    with atomic_path(path) as temporary, writing(path):
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: str | os.PathLike[str], *others: type[Exception]) -> Iterator[None]:
    """Turn an ``OSError`` of the block, which writes ``path``, into an OutputError that names it.

    Args:
        path: the file or folder.
        others: what a library that writes raises in place of an ``OSError``.

    Raises:
        OutputError: as said; one that the block raises, which names a file already, is left as it
            is.
    """
    target = Path(path)
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except OutputError:
        raise
    except kinds as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"{target} cannot be written: {reason}; choose another place, or "
            f"check the permissions and the free space of {target.parent}"
        ) from error


def _exchange(new: Path, target: Path, former: Path) -> None:
    """Move ``new`` to ``target``, and the folder that is there to ``former``; both or neither."""
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    try:
        if os.path.lexists(target):
            os.replace(target, former)
        os.replace(new, target)
    except BaseException:  # Ctrl-C between the two as well
        if os.path.lexists(former) and not os.path.lexists(target):
            os.replace(former, target)
        raise
