"""Finding and loading the LazyConfig files of ``configs/`` and ``projects/``.

In a checkout (and an editable installation) they lie beside the package. A wheel carries them below
``densedet/model_zoo/files`` with the same relative layout, so that LazyConfig's relative imports
(``from ....configs.common.train import train``) mean the same file in both.
"""

import difflib
from pathlib import Path
from typing import Any

from densedet.errors import ConfigError, InstallationError

_PACKAGE = Path(__file__).resolve().parent


def config_root() -> Path:
    """Return the folder that holds ``configs/`` and ``projects/``.

    Raises:
        InstallationError: The package was copied without them.
    """
    packaged, checkout = _PACKAGE / "files", _PACKAGE.parent.parent
    if packaged.is_dir():
        return packaged
    if (checkout / "configs").is_dir() and (checkout / "setup.py").is_file():
        return checkout
    raise InstallationError(
        f"no configs: {packaged} does not exist, and {checkout} is not a checkout of densedet; "
        "install densedet from its wheel or its checkout"
    )


def list_configs() -> list[str]:
    """Return the names of all project configs, ``projects/<project>/configs/<name>.py``, sorted."""
    root = config_root()
    return _names(root, root.glob("projects/*/configs/*.py"))


def get_config_path(name: str) -> Path:
    """Return the file of a config.

    Args:
        name: Path below :func:`config_root`, with or without ``.py``: a name that
            :func:`list_configs` gives, or a shared part such as ``configs/common/train.py``.

    Raises:
        ConfigError: There is no such config; the message names close matches.
    """
    root = config_root()
    wanted = name if name.endswith(".py") else f"{name}.py"
    known = list_configs() + _names(root, root.glob("configs/**/*.py"))
    if wanted in known:
        return root / wanted
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "densedet.model_zoo.list() names all"
    raise ConfigError(f"no config {name!r} in densedet's model zoo; {hint}")


def get_config(name: str) -> Any:
    """Load a config, with nothing instantiated.

    Args:
        name: As in :func:`get_config_path`.

    Returns:
        The ``omegaconf.DictConfig`` of ``detectron2.config.LazyConfig.load``.

    Raises:
        ConfigError: There is no such config.
        InstallationError: Detectron2 is not installed.
    """
    path = get_config_path(name)
    try:
        from detectron2.config import LazyConfig
    except ImportError as error:
        raise InstallationError(
            f"Detectron2 is needed to load {name} and cannot be imported ({error}); "
            "run tools/install_detectron2.py of the checkout, or 'densedet doctor' for more"
        ) from error
    return LazyConfig.load(str(path))


def _names(root: Path, paths: Any) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in paths if path.name != "__init__.py")
