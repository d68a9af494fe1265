"""PASCAL VOC 2012 and PASCAL-Context on small files of their official layouts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from scipy import io as scipy_io

from densedet.data.pascal import context_vocabulary, register_context, register_voc_20
from densedet.data.prepare import prepare_dataset
from densedet.errors import DatasetError, VocabularyError

VOC, CONTEXT = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
LABELS = np.array([[0, 1, 20], [255, 2, 0], [0, 0, 0], [3, 3, 3]], dtype=np.uint8)
CONTEXT_LABELS = np.array([[0, 1, 59], [59, 2, 0], [0, 0, 0], [3, 3, 3]], dtype=np.uint8)


def _lists(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("2007_a\n2007_b\n")
    (folder / "val.txt").write_text("2007_c\n")


@pytest.fixture
def voc(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """Three listed images, and one that has no segmentation."""
    for name in ("2007_a", "2007_b", "2007_c", "2008_boxes_only"):
        save(f"{VOC}/JPEGImages/{name}.jpg")
    for name in ("2007_a", "2007_b", "2007_c"):
        path = save(f"{VOC}/SegmentationClass/{name}.png", LABELS)
        image = Image.fromarray(LABELS)
        image.putpalette(list(range(256)) * 3)  # as the official files are
        image.save(path)
    _lists(tmp_path / VOC / "ImageSets/Segmentation")
    return tmp_path


@pytest.fixture
def context(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """Three images with the labels of 59 classes, and the lists of both numbers of classes."""
    for name in ("2007_a", "2007_b", "2007_c"):
        save(f"{CONTEXT}/JPEGImages/{name}.jpg")
        save(f"{CONTEXT}/59_context_labels/{name}.png", CONTEXT_LABELS)
    _lists(tmp_path / CONTEXT / "ImageSets/Main")
    for name, classes in (("59_labels.txt", 59), ("labels.txt", 459)):
        lines = [f"{i}: class{i}\n" for i in range(1, classes + 1)]
        (tmp_path / CONTEXT / name).write_text("".join(lines))
    return tmp_path


@pytest.fixture
def context_459(context: Path) -> Path:
    """The same images with the labels of 459 classes."""
    (context / CONTEXT / "trainval").mkdir()
    labels = np.where(CONTEXT_LABELS == 59, np.uint16(459), CONTEXT_LABELS)
    for name in ("2007_a", "2007_b", "2007_c"):
        scipy_io.savemat(context / CONTEXT / f"trainval/{name}.mat", {"LabelMap": labels})
    return context


def test_voc_20(voc: Path) -> None:
    contents = prepare_dataset("voc_20", voc, any_count=True)
    assert {name: c.images for name, c in contents.items()} == {"voc_20_train": 2, "voc_20_val": 1}
    assert contents["voc_20_val"].counts["aeroplane"] == 1
    assert contents["voc_20_val"].counts["boat"] == 0
    assert contents["voc_20_val"].counts["bird"] == 3
    assert contents["voc_20_val"].ignored == 6
    (record,) = DatasetCatalog.get("voc_20_val")
    assert record["file_name"] == str(voc / VOC / "JPEGImages/2007_c.jpg")
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    expected = [[255, 0, 19], [255, 1, 255], [255, 255, 255], [2, 2, 2]]
    assert (labels.dtype, labels.tolist()) == (np.uint8, expected)
    assert MetadataCatalog.get("voc_20_val").stuff_classes[19] == "tvmonitor"


def test_voc_without_a_listed_label_map(voc: Path) -> None:
    (voc / VOC / "SegmentationClass/2007_b.png").unlink()
    with pytest.raises(DatasetError, match=r"2007_b: there is no label map of .*train\.txt in"):
        prepare_dataset("voc_20", voc, any_count=True)
    assert not (voc / VOC / "annotations_detectron2").exists()


def test_voc_label_of_another_data_set(voc: Path, save: Callable[..., Path]) -> None:
    save(f"{VOC}/SegmentationClass/2007_b.png", np.full((4, 3), 33, dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"2007_b\.png has the label 33, which none of the 20"):
        prepare_dataset("voc_20", voc, any_count=True)
    assert list((voc / VOC / "annotations_detectron2").iterdir()) == []


def test_voc_list_that_is_missing(voc: Path) -> None:
    (voc / VOC / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(DatasetError, match=r"val\.txt does not exist; PASCAL VOC 2012 \(http"):
        prepare_dataset("voc_20", voc, any_count=True)
    register_voc_20(voc)
    for text in ("", "a\na\n"):
        (voc / VOC / "ImageSets/Segmentation/val.txt").write_text(text)
        with pytest.raises(DatasetError, match=r"val\.txt is empty or names an image twice"):
            prepare_dataset("voc_20", voc, any_count=True)


def test_context_59(context: Path) -> None:
    contents = prepare_dataset("context_59", context, any_count=True)
    assert {k: c.images for k, c in contents.items()} == {
        "context_59_train": 2,
        "context_59_val": 1,
    }
    assert contents["context_59_val"].counts["class59"] == 2
    (record,) = DatasetCatalog.get("context_59_val")
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    expected = [[255, 0, 58], [58, 1, 255], [255, 255, 255], [2, 2, 2]]
    assert (labels.dtype, labels.tolist()) == (np.uint8, expected)
    assert MetadataCatalog.get("context_59_val").ignore_label == 255


def test_context_459(context_459: Path) -> None:
    contents = prepare_dataset("context_459", context_459, any_count=True)
    assert contents["context_459_train"].counts["class459"] == 4
    assert contents["context_459_train"].ignored == 10
    (record,) = DatasetCatalog.get("context_459_val")
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    void = 65535
    assert labels.tolist() == [[void, 0, 458], [458, 1, void], [void] * 3, [2, 2, 2]]
    assert MetadataCatalog.get("context_459_val").ignore_label == void


def test_context_names(context: Path) -> None:
    vocabulary = context_vocabulary(59, context)
    assert (vocabulary.labels[0], vocabulary.labels[-1]) == ("class1", "class59")
    assert set(vocabulary.kinds) == {"stuff"}
    path = context / CONTEXT / "59_labels.txt"
    text = path.read_text()
    path.write_text(text.replace("7: class7\n", ""))
    with pytest.raises(DatasetError, match=r"59_labels\.txt has 58 lines .* instead of 59"):
        register_context(59, context)
    path.write_text(text.replace("class8\n", "class9\n"))
    with pytest.raises(VocabularyError, match="the label 'class9' is already used"):
        register_context(59, context)
    path.unlink()
    with pytest.raises(DatasetError, match=r"59_labels\.txt does not exist; PASCAL-Context"):
        register_context(59, context)


def test_names_that_voc_writes_as_one_word_are_prompted_as_two(context: Path) -> None:
    for classes, name in ((59, "59_labels.txt"), (459, "labels.txt")):
        path = context / CONTEXT / name
        text = path.read_text().replace("class7\n", "pottedplant\n")
        path.write_text(text.replace("class8\n", "bedclothes\n"))
        vocabulary = context_vocabulary(classes, context)
        assert vocabulary.labels[5:8] == ("class6", "pottedplant", "bedclothes")
        assert vocabulary.synonyms[5:8] == ("class6", "potted plant", "bedclothes")


@pytest.mark.parametrize("label", [-1, 65537, 2.5])
def test_context_label_that_cannot_be(context_459: Path, label: float) -> None:
    path = context_459 / CONTEXT / "trainval/2007_b.mat"
    scipy_io.savemat(path, {"LabelMap": np.full((4, 3), label)})
    with pytest.raises(DatasetError, match=rf"2007_b\.mat has the label {label}.*, which none of"):
        prepare_dataset("context_459", context_459, any_count=True)


def test_context_without_a_mat_file(context_459: Path) -> None:
    (context_459 / CONTEXT / "trainval/2007_b.mat").unlink()
    with pytest.raises(DatasetError, match=r"2007_b\.mat does not exist \(1 of 2 are missing\)"):
        prepare_dataset("context_459", context_459, any_count=True)
