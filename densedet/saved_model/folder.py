"""The folder of a saved model: its files, where it is, and whether they are what they were."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from densedet.errors import CheckpointError, ConfigError, DensedetError, InstallationError
from densedet.files import check_regular
from densedet.weights import file_digest

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"
VOCABULARY = "vocabulary.json"
TEXT = "text.safetensors"
CARD = "README.md"
HUB = "hf-hub:"
FORMAT = 2
"""From 2 on a config has its own digest; folders of format 1 are read with or without one."""
DIGEST = "sha256"
"""The key of the config under which its own digest stands."""

_MAX_DEPTH = 100
_OPENING = (
    yaml.BlockMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.FlowSequenceStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)
_NEEDED = (WEIGHTS, VOCABULARY)
_FILES = frozenset({CONFIG, *_NEEDED, TEXT, CARD})
_FORMATS = (1, FORMAT)
_KEYS = frozenset({"format", "densedet", "files", "model", "augmentations", DIGEST})
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pkl")


def is_saved_model(source: str | os.PathLike[str]) -> bool:
    """Whether this is, by its looks, a saved model: a folder, or a name on the Hugging Face Hub."""
    text = os.fspath(source)
    return text.startswith(HUB) or (bool(text) and Path(os.path.expanduser(text)).is_dir())


def is_config_of_saved_model(path: str | os.PathLike[str]) -> bool:
    """Whether this file is the ``config.yaml`` of a saved model, which is no config by itself."""
    try:
        content = _plain_yaml(Path(os.path.expanduser(path)))
    except Exception:  # of the file system, YAML and OmegaConf: then it is another file
        return False
    return isinstance(content, dict) and {"format", "files"} <= content.keys()


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
    content.pop(DIGEST, None)
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


def config_digest(content: Mapping[str, Any]) -> str:
    """sha256 (hex) of a config's content but for the digest itself, however it is laid out.

    The digests of the other files are in it: so it is that of the folder, the card excepted.
    """
    others = {key: value for key, value in content.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()


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
        content = _plain_yaml(path)
        _check_json(content)
    except Exception as error:  # of YAML and of OmegaConf, whatever is in the file
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path} is not plain YAML: {reason}") from error
    if not isinstance(content, dict) or content.get("format") not in _FORMATS:
        raise ConfigError(f"{path} is not of a saved model of format {FORMAT}; save it again")
    unknown = sorted(content.keys() - _KEYS)
    if unknown:
        raise ConfigError(
            f"{path}: {unknown[0]!r} is no part of a saved model (parts: {', '.join(sorted(_KEYS))}"
            "); save or download the model again"
        )
    needed = DIGEST in content or content["format"] != 1
    if needed and content.get(DIGEST) != config_digest(content):
        raise CheckpointError(
            f"{path} was changed: its content does not have the {DIGEST} that it names; save or "
            f"download the model again, or, if the change is yours, let its line {DIGEST!r} be "
            f"{DIGEST}: {config_digest(content)}"
        )
    return content


def _check_json(content: Any) -> None:
    """Raise ValueError where there is what JSON has not, such as bytes or a key that is no text."""
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is not text")
            _check_json(value)
    elif isinstance(content, list):
        for value in content:
            _check_json(value)
    elif not isinstance(content, str | int | float | None):
        raise ValueError(f"{content!r:.40} is not text, a number or a list of them")


def _plain_yaml(path: Path) -> Any:
    """YAML as plain data.

    The parts are looked at one after the other, before anything is made of them: what refers to
    another part, which may unfold to any size, or is nested like no config, raises ValueError.
    """
    check_regular(path)
    text = path.read_text(encoding="utf-8")
    depth = 0
    for token in yaml.scan(text, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.Loader):
        line = token.start_mark.line + 1
        if isinstance(token, yaml.AliasToken):
            raise ValueError(f"line {line} has the alias *{token.value}; write the value itself")
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _MAX_DEPTH:
            raise ValueError(f"line {line} is nested more than {_MAX_DEPTH} deep")
    return OmegaConf.to_container(OmegaConf.create(text), resolve=False)
