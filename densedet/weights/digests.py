"""Digests of weights and of files."""

import hashlib
import json
import os
from collections.abc import Mapping

import torch
from torch import Tensor

from densedet.weights.kinds import require_file

StateDict = dict[str, Tensor]
PathLike = str | os.PathLike[str]

SHA256 = "sha256"
"""The key in the metadata of a safetensors file under which its own digest stands."""


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of names, dtypes, shapes and values, independent of the order of the entries."""
    return _hash_of(state).hexdigest()


def content_digest(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 (hex) of weights and of the metadata beside them, but for `SHA256` itself."""
    digest = _hash_of(state)
    others = {key: value for key, value in metadata.items() if key != SHA256}
    digest.update(json.dumps(others, sort_keys=True).encode())
    return digest.hexdigest()


def file_digest(path: PathLike) -> str:
    """sha256 (hex) of a file's bytes; raises CheckpointError if there is no such file."""
    require_file(path)
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _hash_of(state: Mapping[str, Tensor]) -> "hashlib._Hash":
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest
