"""One bit that turns over in a file of weights is seen, or changes nothing that is read."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from densedet.clip import VocabularyEmbedder, convert
from densedet.clip.checkpoints import read_state_dict, write_weights
from densedet.clip.tiny import build_tiny_clip, export_tiny_weights
from densedet.engine.checkpoint import Checkpointer, read_checkpoint
from densedet.errors import CheckpointError
from densedet.regions import EmbeddingCache
from densedet.vocabulary import Vocabulary
from densedet.weights import read_safetensors, write_safetensors

STATE = {"a.weight": torch.arange(400.0).reshape(20, 20), "b": torch.arange(30)}
WORDS = Vocabulary.parse("cat,kitten;remote control;dog")
Case = tuple[Path, Callable[[], Any]]


def safetensors(folder: Path) -> Case:
    path = folder / "a.safetensors"
    write_safetensors(path, STATE, {"model": "x"})
    return path, lambda: read_safetensors(path)


def open_clip_weights(folder: Path) -> Case:
    path = folder / "a.safetensors"
    table = torch.zeros(50, 4).index_fill(0, torch.tensor([3, 9]), 1.0)
    write_weights(path, {**STATE, "token_embedding.weight": table}, {"origin": "{}"})
    return path, lambda: read_state_dict(path)


def torch_file(folder: Path) -> Case:
    torch.save(STATE, folder / "a.pt")
    return folder / "a.pt", lambda: read_state_dict(folder / "a.pt")


def torchscript(folder: Path) -> Case:
    torch.manual_seed(0)
    torch.jit.script(nn.Linear(30, 30)).save(str(folder / "a.pt"))
    return folder / "a.pt", lambda: read_state_dict(folder / "a.pt")


def released(folder: Path) -> Case:
    convert.write_released(
        folder / "a.pt", convert.ClipWeights("densedet-tiny", STATE, convert.Origin())
    )
    return folder / "a.pt", lambda: read_state_dict(folder / "a.pt")


def training(folder: Path) -> Case:
    torch.manual_seed(0)
    model = nn.Linear(20, 20)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 20)).sum().backward()
    optimizer.step()
    Checkpointer(model, str(folder), optimizer=optimizer).save("model_final", iteration=7)
    path = folder / "model_final.pth"
    return path, lambda: read_checkpoint(str(path))


def region_cache(folder: Path) -> Case:
    cache = EmbeddingCache(folder, "teacher")
    rectangles = torch.arange(40).reshape(10, 4)
    cache.put("7", rectangles, torch.arange(80.0).reshape(10, 8))
    return cache.path("7"), lambda: cache.get("7", rectangles)


def class_embeddings(folder: Path) -> Case:
    torch.manual_seed(1)
    file = folder / "w.safetensors"
    export_tiny_weights(build_tiny_clip(), range(49408), file)
    embedder = VocabularyEmbedder("densedet-tiny", str(file), "single", folder / "cache")
    embedder(WORDS)
    path = embedder.cache_path(WORDS)
    assert path is not None
    return path, lambda: embedder(WORDS)


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return equal(vars(left), vars(right)) if hasattr(left, "__dict__") else bool(left == right)


def outcomes(path: Path, read: Callable[[], Any], count: int, seed: int = 0) -> Counter[str]:
    """Turn over one bit at so many places, each alone, and count what comes of it."""
    whole, original = copy.deepcopy(read()), path.read_bytes()  # not the file, mapped
    assert equal(whole, read())
    found: Counter[str] = Counter()
    for bit in np.random.default_rng(seed).integers(0, 8 * len(original), count).tolist():
        data = bytearray(original)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(data))
        try:
            found["the same" if equal(read(), whole) else "changed without a word"] += 1
        except CheckpointError as error:
            assert "\n" not in str(error)
            found["refused"] += 1
    path.write_bytes(original)
    return found


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "make",
    [
        safetensors,
        open_clip_weights,
        torch_file,
        torchscript,
        released,
        training,
        region_cache,
        class_embeddings,
    ],
    ids=lambda make: make.__name__,
)
def test_a_bit_that_turns_over_changes_nothing_without_a_word(
    tmp_path: Path, make: Callable[[Path], Case]
) -> None:
    path, read = make(tmp_path)
    found = outcomes(path, read, 150)
    assert found.keys() <= {"refused", "the same"}
    assert found["refused"] > 30  # the archives of torch are padded, which nobody reads
    assert math.isclose(found.total(), 150)
