"""The folder of a saved model: its files, where it is, and whether they are what they were."""

import os
import re
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from densedet.errors import CheckpointError, ConfigError, DensedetError, InstallationError
from densedet.weights import file_digest

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"
VOCABULARY = "vocabulary.json"
TEXT = "text.safetensors"
CARD = "README.md"
HUB = "hf-hub:"
FORMAT = 1

_NEEDED = (WEIGHTS, VOCABULARY)
_FILES = frozenset({CONFIG, *_NEEDED, TEXT, CARD})
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")


def is_saved_model(source: str | os.PathLike[str]) -> bool:
    """Whether this is, by its looks, a saved model: a folder, or a name on the Hugging Face Hub."""
    text = os.fspath(source)
    return text.startswith(HUB) or (bool(text) and Path(os.path.expanduser(text)).is_dir())


def is_config_of_saved_model(path: str | os.PathLike[str]) -> bool:
    """Whether this file is the ``config.yaml`` of a saved model, which is no config by itself."""
    try:
        content = OmegaConf.load(Path(os.path.expanduser(path)))
    except Exception:  # of the file system, YAML and OmegaConf: then it is another file
        return False
    return "format" in content and "files" in content


def find_folder(source: str | os.PathLike[str]) -> Path:
    """The folder of a saved model on this machine, downloaded first if it is on the Hub.

    Args:
        source: a folder; or "hf-hub:owner/name", with "@revision" if it is not the newest.

    Raises:
        ConfigError: there is no such folder, or it is a file.
        CheckpointError: it cannot be downloaded.
        InstallationError: huggingface_hub is needed and not installed.
    """
    text = os.fspath(source)
    if text.startswith(HUB):
        return _download(text.removeprefix(HUB))
    folder = Path(os.path.expanduser(text))
    if text and folder.is_dir():
        return folder
    if folder.is_file():
        raise ConfigError(
            f"{text} is a file: give the folder of a saved model, which save_model writes; "
            "checkpoints (pickles) are not read here"
        )
    hint = f"; on the Hugging Face Hub it is {HUB}{text}" if text.count("/") == 1 else ""
    raise ConfigError(f"no folder {text!r} with a saved model{hint}")


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise InstallationError(
            f"{HUB}{name} needs huggingface_hub: pip install huggingface_hub"
        ) from error
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"{HUB}{name}: write {HUB}owner/name or {HUB}owner/name@revision")
    try:
        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=sorted(_FILES))
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{HUB}{name} cannot be downloaded ({reason}); check the name and the network, or give "
            "a folder"
        ) from error


def read_folder(folder: Path) -> dict[str, Any]:
    """The content of ``config.yaml``, plain data, after every file was compared with its digest.

    Raises:
        CheckpointError: a file is missing or is not the one that was saved, or the weights are a
            pickle.
        ConfigError: the config cannot be read, or is of another format.
    """
    content = _read_config(folder)
    digests = content.get("files")
    if not isinstance(digests, dict) or not {*_NEEDED} <= {*digests} <= {*_NEEDED, TEXT}:
        raise ConfigError(f"{folder / CONFIG}: 'files' must have the digests of {_NEEDED}")
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; save or download the model again")
        found = file_digest(folder / name)
        if found != digest:
            raise CheckpointError(
                f"{folder / name} has the sha256 {found}, not {digest} as {CONFIG} says: it was "
                "changed or cut off; save or download the model again"
            )
    return content


def other_files(folder: Path) -> list[str]:
    """The names in a folder that are no file of a saved model there; all where there is none."""
    entries = sorted(folder.iterdir())
    try:
        _read_config(folder)
    except DensedetError:
        return [entry.name for entry in entries]
    ours = {entry.name for entry in entries if entry.is_file() and not entry.is_symlink()} & _FILES
    return [entry.name for entry in entries if entry.name not in ours]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        pickles = [file.name for file in sorted(folder.iterdir()) if file.suffix in _PICKLES]
        found = f" ({', '.join(pickles)} alone is not one, and pickles are not read)"
        raise CheckpointError(
            f"{folder} is not a saved model: it has no {CONFIG}{found if pickles else ''}; "
            "densedet.saved_model.save_model writes one"
        )
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # of YAML and of OmegaConf, whatever is in the file
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not plain YAML: {reason}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"{path} is not of a saved model of format {FORMAT}; save it again")
    return {str(key): value for key, value in content.items()}
