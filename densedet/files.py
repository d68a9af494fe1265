"""Writing files so that a reader never sees half of one."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from densedet.errors import OutputError


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
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(target.suffix, f".{target.stem}.", target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        with _named(target):
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder; move it onto ``path`` if the block succeeds.

    Missing parent folders are made. If the block raises, the temporary folder is removed and what
    is at ``path`` is left as it was.

    Raises:
        OutputError: the folder cannot be made, or ``path`` cannot be replaced. What the block
            raises is left as it is.
    """
    target = Path(path)
    with _named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    with temporary as name:
        folder = Path(name) / target.name
        folder.mkdir()
        yield folder
        with _named(target):
            if target.exists():
                shutil.rmtree(target)
            os.replace(folder, target)


@contextmanager
def _named(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror or error}; choose another place, or "
            f"check the permissions and the free space of {target.parent}"
        ) from error
