"""Class embeddings and their cache."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from densedet.clip import ClassEmbeddings, VocabularyEmbedder, tokens
from densedet.clip.class_embeddings import default_cache_dir
from densedet.clip.tiny import build_tiny_clip, export_tiny_weights
from densedet.errors import CheckpointError, VocabularyError
from densedet.vocabulary import Vocabulary

MODEL = "densedet-tiny"


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.parse("cat,kitten;remote control;dog")


def weights(path: Path, seed: int) -> str:
    torch.manual_seed(seed)
    export_tiny_weights(build_tiny_clip(), range(49408), path)
    return str(path)


@pytest.fixture
def embedder(tmp_path: Path) -> VocabularyEmbedder:
    file = weights(tmp_path / "w.safetensors", seed=1)
    return VocabularyEmbedder(MODEL, file, templates="single", cache_dir=tmp_path / "cache")


def again(embedder: VocabularyEmbedder) -> VocabularyEmbedder:
    return VocabularyEmbedder(
        embedder.model, embedder.pretrained, embedder.templates, embedder.cache_dir
    )


def equal(left: ClassEmbeddings, right: ClassEmbeddings) -> bool:
    pairs = [(getattr(left, n), getattr(right, n)) for n in ("vectors", "groups", "background")]
    return all(torch.equal(a, b) for a, b in pairs)


def test_rows_are_synonyms_and_groups_are_categories(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary
) -> None:
    found = embedder(vocabulary)
    names = ["cat", "kitten", "remote control", "dog", "background"]
    expected = embedder.encoder.embed_names(names, "single")
    torch.testing.assert_close(found.vectors, expected[:4])
    torch.testing.assert_close(found.background, expected[4])
    assert found.groups.tolist() == [0, 0, 1, 2] and found.groups.dtype == torch.int64
    assert found.vectors.dtype == torch.float32 and not found.vectors.requires_grad
    moved = found.to("meta")
    assert moved.vectors.is_meta and moved.groups.is_meta and moved.background.is_meta


def test_second_time_comes_from_the_cache_without_a_text_tower(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary
) -> None:
    first = embedder(vocabulary)
    second = again(embedder)
    assert equal(second(vocabulary), first)
    assert "encoder" in vars(embedder) and "encoder" not in vars(second)
    path = embedder.cache_path(vocabulary)
    assert path is not None and list(path.parent.iterdir()) == [path]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {
        *("weights", "vocabulary", "templates", "text_tower_version", "names", "background"),
        *("cut", "context_length", "sha256"),
    }
    assert metadata["background"] == '"background"'
    assert metadata["vocabulary"] == vocabulary.digest()
    assert metadata["names"] == '["cat", "kitten", "remote control", "dog"]'


def test_key_depends_on_weights_vocabulary_and_templates(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    file, cache = embedder.pretrained, embedder.cache_dir
    other = weights(tmp_path / "other.safetensors", seed=2)
    paths = {
        embedder.cache_path(vocabulary),
        embedder.cache_path(Vocabulary.parse("cat;kitten;remote control;dog")),
        VocabularyEmbedder(MODEL, file, "clip80", cache).cache_path(vocabulary),
        VocabularyEmbedder(MODEL, other, "single", cache).cache_path(vocabulary),
    }
    assert len(paths) == 4
    copy = shutil.copy(str(file), tmp_path / "copy.safetensors")
    same = VocabularyEmbedder(MODEL, str(copy), "single", cache)
    assert same.cache_path(vocabulary) == embedder.cache_path(vocabulary)


def test_cache_of_another_model_is_refused_by_name(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    other_file = weights(tmp_path / "other.safetensors", seed=2)
    other = VocabularyEmbedder(MODEL, other_file, "single", embedder.cache_dir)
    other(vocabulary)
    path = embedder.cache_path(vocabulary)
    shutil.copy(str(other.cache_path(vocabulary)), str(path))
    message = rf"{path.name}: vocabulary cache of another model .*different weights\).*delete"
    with pytest.raises(CheckpointError, match=message):
        embedder(vocabulary)


def test_cache_without_metadata_and_damaged_cache_are_refused(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary
) -> None:
    embedder(vocabulary)
    path = embedder.cache_path(vocabulary)
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match=f"{path.name}: damaged vocabulary cache"):
        embedder(vocabulary)
    save_file({"vectors": torch.zeros(4, 128)}, path)
    with pytest.raises(CheckpointError, match=f"{path.name}: vocabulary cache of another model"):
        embedder(vocabulary)


def test_random_weights_are_reproducible_and_not_cached(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    first = VocabularyEmbedder(MODEL, None, "single", tmp_path / "cache")
    found = first(vocabulary)
    drawn = torch.rand(1)
    second = VocabularyEmbedder(MODEL, None, "single", tmp_path / "cache")(vocabulary)
    assert equal(found, second)
    assert first.cache_path(vocabulary) is None and not (tmp_path / "cache").exists()
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the global random state was left alone


def test_the_generators_of_cuda_are_left_alone(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    torch.manual_seed(1)
    assert seeds == [1]  # what torch.manual_seed does to them
    VocabularyEmbedder(MODEL, None, "single")(vocabulary)
    assert seeds == [1]


def test_autocast_changes_nothing_and_nothing_that_is_cached(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = embedder(vocabulary)
    names = ["cat", "kitten", "remote control", "dog"]
    torch.testing.assert_close(found.vectors, embedder.encoder.embed_names(names, "single"))
    assert equal(again(embedder)(vocabulary), found)


def test_made_in_inference_mode_can_be_trained_with(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary
) -> None:
    with torch.inference_mode():
        found = embedder(vocabulary)
        cached = again(embedder)(vocabulary)
    x = torch.ones(1, 128, requires_grad=True)
    (x @ found.vectors.T + x @ cached.vectors.T).sum().backward()
    assert x.grad is not None


def test_unwritable_cache_is_only_a_warning(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    embedder.cache_dir.write_text("a file where the folder should be")
    assert embedder(vocabulary).vectors.shape == (4, 128)
    assert "class embeddings are not cached" in caplog.text


def test_full_disk_is_only_a_warning(
    embedder: VocabularyEmbedder,
    vocabulary: Vocabulary,
    caplog: pytest.LogCaptureFixture,
    full_disk: Callable[[int], None],
) -> None:
    assert embedder.encoder.embed_dim == 128  # built, which may write elsewhere
    full_disk(100)
    assert embedder(vocabulary).vectors.shape == (4, 128)
    assert "class embeddings are not cached" in caplog.text
    assert list(embedder.cache_dir.iterdir()) == []


def test_unknown_template_set_is_refused_at_once() -> None:
    with pytest.raises(VocabularyError, match="clip81"):
        VocabularyEmbedder(MODEL, templates="clip81")


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DENSEDET_CACHE", raising=False)
    assert default_cache_dir() == tmp_path / "densedet" / "class_embeddings"
    monkeypatch.setenv("DENSEDET_CACHE", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine" / "class_embeddings"
    monkeypatch.setenv("DENSEDET_CACHE", "")
    assert default_cache_dir() is None


def test_without_a_word_for_background_it_is_zero(tmp_path):
    vocabulary = Vocabulary.from_names(["cat", "dog"])
    embed = VocabularyEmbedder("densedet-tiny", None, "single", tmp_path, background=None)
    full = VocabularyEmbedder("densedet-tiny", None, "single", tmp_path)
    assert not embed(vocabulary).background.any()
    assert full(vocabulary).background.norm().item() == pytest.approx(1.0)
    assert torch.allclose(embed(vocabulary).vectors, full(vocabulary).vectors, atol=1e-6)


def test_names_that_are_cut_are_named_from_the_cache_too(
    embedder: VocabularyEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    length = embedder.encoder.context_length
    name = "red " * length + "star"
    for embed in (embedder, again(embedder)):
        tokens._warn.cache_clear()
        caplog.clear()
        embed(Vocabulary.from_names([name, "dog"]))
        assert f"is longer than the {length} tokens" in caplog.text
        assert f"of its {length + 1} words the first {length - 6} are kept" in caplog.text
    assert "encoder" not in vars(embed)


def test_categories_that_become_equal_are_refused_and_not_cached(
    embedder: VocabularyEmbedder,
) -> None:
    start = "red " * embedder.encoder.context_length
    with pytest.raises(VocabularyError, match=r"star'.*ring' are the same to the text tower"):
        embedder(Vocabulary.from_names([f"{start} star", f"{start} ring"]))
    assert not embedder.cache_dir.exists()
    found = embedder(Vocabulary.parse(f"{start} star,{start} ring;dog"))  # synonyms
    assert torch.equal(found.vectors[0], found.vectors[1])


def test_cached_numbers_without_a_digest_are_refused(
    embedder: VocabularyEmbedder, vocabulary: Vocabulary
) -> None:
    embedder(vocabulary)
    path = embedder.cache_path(vocabulary)
    with safe_open(path, framework="pt") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    content["vectors"][0, 0] += 1
    save_file(content, path, metadata)
    with pytest.raises(CheckpointError, match="damaged vocabulary cache.*sha256.*delete the file"):
        embedder(vocabulary)
    del metadata["sha256"]
    save_file(content, path, metadata)
    with pytest.raises(CheckpointError, match=r"damaged vocabulary cache \(no sha256\)"):
        embedder(vocabulary)
