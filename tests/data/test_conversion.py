"""Label tables, folders that appear when they are whole, and MATLAB's matrices."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io

from densedet.data.conversion import (
    LabelTable,
    PanopticImage,
    category_entries,
    label_conversion,
    panoptic_conversion,
    segment_entry,
)
from densedet.data.mat_file import read_mat_matrix
from densedet.data.segment_map import read_segment_map
from densedet.errors import DatasetError, ImageError, OutputError
from densedet.vocabulary import Category, Vocabulary


def test_label_table() -> None:
    table = LabelTable([7, 3, 9], [0, 255])
    labels = np.array([[7, 3, 9], [0, 255, 3]], dtype=np.uint8)
    indices = table(labels, "x.png")
    assert indices.dtype == np.uint8
    assert indices.tolist() == [[0, 1, 2], [255, 255, 1]]
    with pytest.raises(DatasetError, match=r"x\.png has the label 8, which none of the 3 classes"):
        table(np.array([[7, 8, 1]]), "x.png")


def test_label_table_of_16_bits() -> None:
    table = LabelTable(range(1, 460), [0], 65535)
    indices = table(np.array([[0, 1, 459]]), "x.mat")
    assert (indices.dtype, indices.tolist()) == (np.uint16, [[65535, 0, 458]])


@pytest.mark.parametrize("label", [-1, -65535, 65536, 70000, 1.5, float("nan"), float("inf")])
def test_labels_that_no_table_has(label: float) -> None:
    table = LabelTable([0, 1, 2, 4464, 65535], [])
    with pytest.raises(DatasetError, match=rf"x\.mat has the label {label}, which none of the 5"):
        table(np.array([[1, label]]), "x.mat")
    indices = table(np.array([[2.0, 65535.0]]), "x.mat")
    assert (indices.dtype, indices.tolist()) == (np.uint8, [[2, 4]])


def test_a_folder_of_label_maps_appears_when_it_is_whole(tmp_path: Path) -> None:
    sources = {"sub/a": tmp_path / "a", "b": tmp_path / "b"}

    def read(path: Path) -> np.ndarray:
        if path.name == "b" and not path.exists():
            raise ImageError(f"{path} is truncated")
        return np.full((2, 3), ord(path.name), dtype=np.uint8)

    conversion = label_conversion(tmp_path / "out", lambda: sources, read, "split")
    with pytest.raises(ImageError, match="b is truncated"):
        conversion.write(conversion.sources())
    assert conversion.missing() == [tmp_path / "out"]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").touch()
    (tmp_path / "out/sub").mkdir(parents=True)
    assert conversion.missing() == [tmp_path / "out"], "a folder without a file"
    conversion.write(conversion.sources())
    assert conversion.missing() == []
    assert np.array_equal(Image.open(tmp_path / "out/sub/a.png"), np.full((2, 3), ord("a")))
    assert sorted(p.name for p in tmp_path.rglob("*.png")) == ["a.png", "b.png"]


def test_panoptic_files(tmp_path: Path) -> None:
    ids = np.array([[0, 70000, 70000], [300, 70000, 0]])
    segments = [segment_entry(ids == 70000, 70000, 5), segment_entry(ids == 300, 300, 2, True)]
    assert segments == [
        {"id": 70000, "category_id": 5, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0},
        {"id": 300, "category_id": 2, "area": 1, "bbox": [0, 1, 1, 1], "iscrowd": 1},
    ]
    vocabulary = Vocabulary((Category("sky", kind="stuff"), Category("cat")))
    categories = category_entries(vocabulary, [2, 5])
    image = PanopticImage({"id": "x"}, ids, segments)
    conversion = panoptic_conversion(
        tmp_path / "pan", categories, lambda: {"x_pan": tmp_path}, lambda _: image, "split"
    )
    conversion.write(conversion.sources())
    assert conversion.missing() == []
    assert np.array_equal(read_segment_map(tmp_path / "pan/x_pan.png"), ids)
    assert json.loads((tmp_path / "pan.json").read_text()) == {
        "images": [{"id": "x"}],
        "annotations": [{"image_id": "x", "file_name": "x_pan.png", "segments_info": segments}],
        "categories": [
            {"id": 2, "name": "sky", "isthing": 0},
            {"id": 5, "name": "cat", "isthing": 1},
        ],
    }


def test_a_corrupt_source_leaves_the_former_panoptic_files(tmp_path: Path) -> None:
    image = PanopticImage({"id": "x"}, np.ones((2, 2), dtype=np.int64), [])

    def read(path: Path) -> PanopticImage:
        if path.exists():
            raise ImageError(f"{path} is truncated")
        return image

    conversion = panoptic_conversion(
        tmp_path / "pan", [], lambda: {"x": tmp_path / "source"}, read, "split"
    )
    conversion.write(conversion.sources())
    former = (tmp_path / "pan.json").read_text()
    (tmp_path / "source").touch()
    with pytest.raises(ImageError, match="source is truncated"):
        conversion.write(conversion.sources())
    assert conversion.missing() == []
    assert (tmp_path / "pan.json").read_text() == former


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    ids = np.ones((2, 2), dtype=np.uint8)
    image = PanopticImage({"id": "x"}, ids, [])
    sources = {"sub/x": tmp_path / "source"}
    labels = label_conversion(tmp_path / "maps", lambda: sources, lambda _: ids, "split")
    panoptic = panoptic_conversion(tmp_path / "pan", [], lambda: sources, lambda _: image, "split")
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"maps/sub/x\.png cannot be written: No space left"):
        labels.write(sources)
    with pytest.raises(OutputError, match=r"sub/x\.png cannot be written: No space left"):
        panoptic.write(sources)
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match=r"pan\.json cannot be written: No space left"):
        panoptic.write(sources)
    assert panoptic.missing() == [tmp_path / "pan.json"]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float64"])
def test_matrices_equal_scipys(tmp_path: Path, dtype: str, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    expected = np.random.default_rng(0).integers(0, 250, (7, 5)).astype(dtype)
    variables = {"names": np.array(["a", "bc"], dtype=object), "x": expected[:1, :1], "S": expected}
    scipy_io.savemat(path, variables, do_compression=compressed)
    for name in ("S", "x"):
        found = read_mat_matrix(path, name)
        assert found.dtype == scipy_io.loadmat(path)[name].dtype
        assert np.array_equal(found, scipy_io.loadmat(path)[name])


def test_files_that_hold_no_matrix(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    with pytest.raises(DatasetError, match=r"a\.mat cannot be read: No such file"):
        read_mat_matrix(path, "S")
    path.write_bytes(b"no mat file" * 50)
    with pytest.raises(DatasetError, match=r"a\.mat is no MATLAB file of version 5 to 7"):
        read_mat_matrix(path, "S")
    for compressed in (False, True):
        scipy_io.savemat(path, {"S": np.ones((40, 40))}, do_compression=compressed)
        with pytest.raises(DatasetError, match=r"a\.mat has no variable 'T'"):
            read_mat_matrix(path, "T")
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(DatasetError, match=r"a\.mat is truncated or corrupt"):
            read_mat_matrix(path, "S")
