"""Weights in files and models: read as data, checked, loaded whole or not at all."""

from densedet.weights.digests import SHA256, PathLike, StateDict, file_digest, weights_digest
from densedet.weights.fitting import abbreviated, fit_strictly, load_strictly
from densedet.weights.kinds import damaged, is_torchscript, require_file
from densedet.weights.reading import (
    check_archive,
    read_safetensors,
    read_torch_file,
    read_weights,
)
from densedet.weights.writing import write_safetensors, write_torch_file

__all__ = [
    "SHA256",
    "PathLike",
    "StateDict",
    "abbreviated",
    "check_archive",
    "damaged",
    "file_digest",
    "fit_strictly",
    "is_torchscript",
    "load_strictly",
    "read_safetensors",
    "read_torch_file",
    "read_weights",
    "require_file",
    "weights_digest",
    "write_safetensors",
    "write_torch_file",
]
