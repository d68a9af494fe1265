"""Pairing images with label maps, and ADE20K on its official layout."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from densedet.data import (
    load_semantic_format,
    register_ade20k,
    register_all,
    register_semantic_format,
)
from densedet.data.semantic_format import read_names
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

WORDS = Vocabulary.parse("wall;sky;tree")
ADE = Path("ADEChallengeData2016")


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., None]:
    """Make grey images of 2 x 2 pixels."""

    def write(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2)).save(path)

    return write


def test_records_are_in_the_order_of_the_paths(tmp_path: Path, put: Callable[..., None]) -> None:
    put("i/b.jpg", "i/a.JPEG", "i/sub/c.png", "l/a.png", "l/b.png", "l/sub/c.png")
    (tmp_path / "i/readme.txt").write_text("not an image")
    assert load_semantic_format(tmp_path / "i", str(tmp_path / "l"), WORDS) == [
        {"file_name": f"{tmp_path}/i/{image}", "sem_seg_file_name": f"{tmp_path}/l/{labels}.png"}
        for image, labels in (("a.JPEG", "a"), ("b.jpg", "b"), ("sub/c.png", "sub/c"))
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"image folder .*/i does not exist; from here$"),
        (["l/a.png"], r"image folder .*/i does not exist; from here$"),
        (["i/a.jpg"], r"label map folder .*/l does not exist; prepare$"),
        (["i/a.gif", "l/a.png"], r"image folder .*/i has no file \*\.jpg, .*; from here$"),
        (["i/a.jpg", "l/a.jpg"], r"label map folder .*/l has no file \*\.png; prepare$"),
        (
            ["i/a.jpg", "i/b.jpg", "i/c.jpg", "l/a.png"],
            r"/i/b\.jpg has no label map in .*/l \(2 of 3 files have none\); add",
        ),
        (["i/a.jpg", "l/a.png", "l/b.png"], r"/l/b\.png has no image in .*/i \(1 of 2 files"),
        (["i/a.jpg", "i/a.png", "l/a.png"], r"/i/a\.jpg and .*/i/a\.png differ in their suffix"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, put: Callable[..., None], files: list[str], message: str
) -> None:
    put(*files)
    with pytest.raises(DatasetError, match=message):
        load_semantic_format(tmp_path / "i", tmp_path / "l", WORDS, "from here", "prepare")


def test_labels_of_8_bits_number_255_categories(tmp_path: Path, put: Callable[..., None]) -> None:
    put("i/a.jpg", "l/a.png")
    words = [f"c{i}" for i in range(256)]
    folders = (tmp_path / "i", tmp_path / "l")
    assert len(load_semantic_format(*folders, Vocabulary.parse(";".join(words[:255])))) == 1
    with pytest.raises(DatasetError, match="256 categories: 8-bit"):
        load_semantic_format(*folders, Vocabulary.parse(";".join(words)))
    many = Vocabulary.parse(";".join(words))
    assert len(load_semantic_format(*folders, many, ignore_label=65535)) == 1, "16-bit PNG"


def test_metadata_and_registering_twice(tmp_path: Path, put: Callable[..., None]) -> None:
    register_semantic_format("pairs", tmp_path / "i", tmp_path / "l", WORDS)
    metadata = MetadataCatalog.get("pairs")
    assert metadata.stuff_classes == ["wall", "sky", "tree"]
    assert metadata.vocabulary is WORDS
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    assert (metadata.image_root, metadata.sem_seg_root) == (f"{tmp_path}/i", f"{tmp_path}/l")
    put("i/a.jpg", "l/a.png")
    assert len(DatasetCatalog.get("pairs")) == 1
    register_semantic_format("pairs", tmp_path / "i", tmp_path / "l", WORDS, hint="another hint")
    with pytest.raises(DatasetError, match=r"'pairs' is already registered, with label_root=.*/l"):
        register_semantic_format("pairs", tmp_path / "i", tmp_path / "m", WORDS)
    with pytest.raises(DatasetError, match="'pairs' is already registered, with vocabulary="):
        register_semantic_format(
            "pairs", tmp_path / "i", tmp_path / "l", WORDS.with_unseen(["sky"])
        )


def test_ade20k(tmp_path: Path, put: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_ade20k()
    register_all(tmp_path)  # registers it as well; the same root
    for part, folder, count in (("train", "training", 2), ("val", "validation", 1)):
        for i in range(count):
            put(str(ADE / f"images/{folder}/{i}.jpg"))
            put(str(ADE / f"annotations_detectron2/{folder}/{i}.png"))
        assert len(DatasetCatalog.get(f"ade20k_150_{part}")) == count
        metadata = MetadataCatalog.get(f"ade20k_150_{part}")
        assert metadata.vocabulary == Vocabulary.named("ade20k_150_denseclip")
        assert len(metadata.stuff_classes) == 150
        assert metadata.stuff_classes[0] == "wall"
        assert metadata.sem_seg_root == str(tmp_path / ADE / "annotations_detectron2" / folder)


def test_ade20k_labels_that_were_copied(tmp_path: Path) -> None:
    register_ade20k(tmp_path)
    raw = np.array([[0, 1, 2], [3, 150, 1]], dtype=np.uint8)
    folder = tmp_path / ADE
    files = [
        folder / name / "validation" / "1.png"
        for name in ("images", "annotations", "annotations_detectron2")
    ]
    for path in files:
        path.parent.mkdir(parents=True)
        Image.fromarray(raw).save(path)
    for wrong in (raw, raw % 150, raw[:1]):
        Image.fromarray(wrong).save(files[2])
        message = r"detectron2/validation/1\.png was not prepared from .*annotations/validation/1"
        with pytest.raises(DatasetError, match=f"{message}.*label 0 becomes 255"):
            DatasetCatalog.get("ade20k_150_val")
    Image.fromarray(np.array([[255, 0, 1], [2, 149, 0]], dtype=np.uint8)).save(files[2])
    assert len(DatasetCatalog.get("ade20k_150_val")) == 1
    files[1].unlink()
    Image.fromarray(raw).save(files[2])
    assert len(DatasetCatalog.get("ade20k_150_val")) == 1, "nothing to compare with"


def test_ade20k_says_what_is_to_do(tmp_path: Path, put: Callable[..., None]) -> None:
    register_ade20k(tmp_path)
    with pytest.raises(DatasetError, match=r"images/training does not .* unpack ADEChallengeData"):
        DatasetCatalog.get("ade20k_150_train")
    put(str(ADE / "images/training/1.jpg"), str(ADE / "annotations/training/1.png"))
    with pytest.raises(DatasetError) as caught:
        DatasetCatalog.get("ade20k_150_train")
    message = str(caught.value)
    assert "annotations_detectron2/training does not exist" in message
    assert "label 0 becomes 255, every other label one less" in message
    assert "datasets/prepare_ade20k_sem_seg.py" in message


@pytest.mark.parametrize(
    ("maps", "ignored", "said"),
    [
        ([[0, 255], [255, 255], [0, 0]], 255, True),
        ([[0, 65535]] * 20, 65535, True),
        ([[0, 255], [0, 1]], 255, False),
        ([[0, 0]], 255, False),
        ([[255, 255]], 255, False),
    ],
)
@pytest.mark.parametrize("words", ["road", "other;road", "wall;sky;tree"])
def test_masks_of_0_and_255_are_named(
    tmp_path: Path,
    put: Callable[..., None],
    maps: list[list[int]],
    ignored: int,
    said: bool,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """255 is the object in such masks, and nothing is trained but the background."""
    for i, row in enumerate(maps):
        put(f"i/{i:02}.jpg", f"l/{i:02}.png")
        labels = np.array([row], dtype=np.uint8 if ignored == 255 else np.uint16)
        Image.fromarray(labels).save(tmp_path / f"l/{i:02}.png")
    vocabulary = Vocabulary.parse(words)
    register_semantic_format(
        "masks", tmp_path / "i", tmp_path / "l", vocabulary, ignore_label=ignored
    )
    assert len(DatasetCatalog.get("masks")) == len(maps)
    first = vocabulary.labels[0]
    expected = f"/l: the label maps hold 0 and {ignored} alone ({min(len(maps), 8)} of {len(maps)}"
    assert (expected in caplog.text and f"only '{first}' is trained" in caplog.text) is said


def test_maps_that_cannot_be_looked_at_are_left_to_their_reader(
    tmp_path: Path, put: Callable[..., None]
) -> None:
    put("i/a.jpg", "i/b.jpg", "l/a.png", "l/b.png")
    (tmp_path / "l/a.png").write_bytes(b"")
    Image.new("RGB", (2, 2)).save(tmp_path / "l/b.png")
    register_semantic_format("broken", tmp_path / "i", tmp_path / "l", WORDS)
    assert len(DatasetCatalog.get("broken")) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("_background_;road", "'_background_' is a category"),
        ("__ignore__;_background_;road", "'__ignore__' and '_background_' are each a category"),
        ("background;traffic_light;_road", ""),
    ],
)
def test_names_that_stand_for_nothing(
    tmp_path: Path,
    put: Callable[..., None],
    words: str,
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """labelme writes them into its lists of classes."""
    put("i/a.jpg", "l/a.png")
    vocabulary = Vocabulary.parse(words)
    register_semantic_format("labelme", tmp_path / "i", tmp_path / "l", vocabulary)
    DatasetCatalog.get("labelme")
    assert (f"/l: {named}" in caplog.text) is bool(named)
    assert bool(caplog.text.count("prompted by that name")) is bool(named)


def test_lists_of_images(tmp_path: Path) -> None:
    path = tmp_path / "val.txt"
    path.write_text("a 1\nb -1\n", encoding="utf-8-sig")
    assert read_names(path) == ["a", "b"], "without the byte order mark"
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DatasetError, match="a named pipe, not a regular file"):
        read_names(tmp_path / "pipe.txt")
