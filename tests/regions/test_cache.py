"""The cache of region embeddings on disk."""

import os
import re

import pytest
import torch

from densedet.errors import CheckpointError, OutputError
from densedet.regions import EmbeddingCache

RECTANGLES = torch.tensor([[0, 0, 10, 10], [5, 5, 9, 20], [1, 2, 3, 4]])
EMBEDDINGS = torch.arange(12, dtype=torch.float32).reshape(3, 4) + 1


def test_what_was_put_is_found_in_any_order(tmp_path):
    cache = EmbeddingCache(tmp_path / "cache", "b16-224")
    assert not (tmp_path / "cache").exists()
    cache.put("7", RECTANGLES, EMBEDDINGS)
    again = EmbeddingCache(tmp_path / "cache", "b16-224")
    wanted = torch.cat([RECTANGLES[[2, 0]], torch.tensor([[9, 9, 10, 10]]), RECTANGLES[:1]])
    found, known = again.get("7", wanted)
    assert known.tolist() == [True, True, False, True]
    assert torch.equal(found[known], EMBEDDINGS[[2, 0, 0]])
    assert found[2].tolist() == [0, 0, 0, 0]


def test_unknown_image(tmp_path):
    found, known = EmbeddingCache(tmp_path, "a").get("1", RECTANGLES)
    assert found.shape == (3, 0) and known.tolist() == [False] * 3


def test_adding_and_replacing(tmp_path):
    cache = EmbeddingCache(tmp_path, "a")
    cache.put("1", RECTANGLES[:2], EMBEDDINGS[:2])
    cache.put("1", RECTANGLES[1:], -EMBEDDINGS[1:])
    cache.put("2", RECTANGLES[:1], EMBEDDINGS[2:])
    found, known = cache.get("1", RECTANGLES)
    assert known.all()
    assert torch.equal(found, torch.cat([EMBEDDINGS[:1], -EMBEDDINGS[1:]]))
    assert torch.equal(cache.get("2", RECTANGLES[:1])[0], EMBEDDINGS[2:])
    cache.put("1", RECTANGLES[:0], EMBEDDINGS[:0])
    assert cache.get("1", RECTANGLES)[1].all()


def test_half_precision_is_kept(tmp_path):
    cache = EmbeddingCache(tmp_path, "a")
    cache.put("1", RECTANGLES, EMBEDDINGS.half())
    assert torch.equal(cache.get("1", RECTANGLES)[0], EMBEDDINGS.half())


def test_files_are_spread_over_folders_and_complete(tmp_path):
    cache = EmbeddingCache(tmp_path, "a")
    for i in range(20):
        cache.put(str(i), RECTANGLES, EMBEDDINGS)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 20 and all(path.suffix == ".safetensors" for path in files)
    assert len({path.parent for path in files}) > 10


def test_other_identity_is_refused(tmp_path):
    EmbeddingCache(tmp_path, "b16").put("7", RECTANGLES, EMBEDDINGS)
    other = EmbeddingCache(tmp_path, "l14")
    path = re.escape(str(other.path("7")))
    for use in (lambda: other.get("7", RECTANGLES), lambda: other.put("7", RECTANGLES, EMBEDDINGS)):
        with pytest.raises(CheckpointError, match=rf"{path}.*\(different identity\); delete the"):
            use()


def test_another_images_file_is_refused(tmp_path):
    cache = EmbeddingCache(tmp_path, "a")
    cache.put("1", RECTANGLES, EMBEDDINGS)
    cache.path("2").parent.mkdir(exist_ok=True)
    os.replace(cache.path("1"), cache.path("2"))
    with pytest.raises(CheckpointError, match=r"image 2 made .*\(different image\)"):
        cache.get("2", RECTANGLES)


def test_damaged_file_is_refused(tmp_path):
    cache = EmbeddingCache(tmp_path, "a")
    cache.put("1", RECTANGLES, EMBEDDINGS)
    cache.path("1").write_bytes(cache.path("1").read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(cache.path('1')))}: damaged"):
        cache.get("1", RECTANGLES)


def test_wrong_shapes(tmp_path):
    cache = EmbeddingCache(tmp_path, "a")
    with pytest.raises(ValueError, match=r"\(3, 4\) and embeddings \(2, 4\)"):
        cache.put("1", RECTANGLES, EMBEDDINGS[:2])
    cache.put("1", RECTANGLES, EMBEDDINGS)
    with pytest.raises(ValueError, match="embeddings of 3 values cannot be added"):
        cache.put("1", RECTANGLES, EMBEDDINGS[:, :3])


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    cache = EmbeddingCache(tmp_path / "file", "a")
    with pytest.raises(OutputError, match="cannot be written"):
        cache.put("1", RECTANGLES, EMBEDDINGS)
