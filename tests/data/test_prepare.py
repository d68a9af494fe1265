"""Preparing data sets again and from broken input, and what the doctor says of them."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

from densedet import cli, doctor
from densedet.data import prepare, register_all
from densedet.data.benchmarks import BENCHMARKS
from densedet.data.images import image_size, read_image
from densedet.data.prepare import dataset_state, prepare_dataset
from densedet.data.verification import Contents
from densedet.errors import DatasetError, ImageError
from densedet.vocabulary import Vocabulary

ADE = "ADEChallengeData2016"


@pytest.fixture
def ade(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """Two images a split."""
    for part in ("training", "validation"):
        for name in ("a", "b"):
            save(f"{ADE}/images/{part}/{name}.jpg")
            save(f"{ADE}/annotations/{part}/{name}.png", np.ones((4, 3), dtype=np.uint8))
    return tmp_path


def _made(root: Path) -> list[str]:
    """What lies beside the official folders, also hidden."""
    names = {path.relative_to(root).as_posix() for path in (root / ADE).rglob("*.png")}
    return sorted(n for n in names if not n.startswith((f"{ADE}/annotations/", f"{ADE}/images/")))


def test_again_and_anew(ade: Path, save: Callable[..., Path]) -> None:
    first = prepare_dataset("ade20k_150", ade, any_count=True)
    path = ade / ADE / "annotations_detectron2/validation/a.png"
    before = path.stat().st_mtime_ns
    assert prepare_dataset("ade20k_150", ade, any_count=True) == first
    assert path.stat().st_mtime_ns == before, "what is there is kept"
    for part in ("training", "validation"):
        save(f"{ADE}/annotations/{part}/a.png", np.full((4, 3), 2, dtype=np.uint8))
    contents = prepare_dataset("ade20k_150", ade, any_count=True, force=True)
    counts = contents["ade20k_150_train"].counts
    assert (counts["wall"], counts["building"]) == (12, 12)


def test_the_number_of_images_is_checked_before_anything_is_made(ade: Path) -> None:
    message = "ade20k_150_train has 2 images, but the official data set has 20,210: unpack"
    with pytest.raises(DatasetError, match=message):
        prepare_dataset("ade20k_150", ade)
    assert _made(ade) == []


def test_half_extracted_folder(ade: Path) -> None:
    (ade / ADE / "annotations/validation/b.png").unlink()
    with pytest.raises(DatasetError, match=r"validation/b\.jpg has no label map in .*annotations"):
        prepare_dataset("ade20k_150", ade, any_count=True)
    assert _made(ade) == []


def test_corrupt_png(ade: Path) -> None:
    path = ade / ADE / "annotations/training/b.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:45])
    with pytest.raises(ImageError, match=r"training/b\.png is truncated or corrupt"):
        prepare_dataset("ade20k_150", ade, any_count=True)
    assert _made(ade) == []
    path.write_bytes(whole)
    assert len(prepare_dataset("ade20k_150", ade, any_count=True)) == 2


def test_wrong_archive(ade: Path, save: Callable[..., Path]) -> None:
    save(f"{ADE}/annotations/training/b.png", np.full((4, 3), 200, dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"training/b\.png has the label 200, which none of the"):
        prepare_dataset("ade20k_150", ade, any_count=True)
    assert _made(ade) == []


def test_label_map_of_another_size(ade: Path, save: Callable[..., Path]) -> None:
    save(f"{ADE}/annotations/training/b.png", np.ones((5, 3), dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"training/b\.png has another size than its image"):
        prepare_dataset("ade20k_150", ade, any_count=True)
    assert dataset_state("ade20k_150", ade).status == "unverified"


def test_missing_archive_is_explained(tmp_path: Path) -> None:
    for name, benchmark in BENCHMARKS.items():
        with pytest.raises(DatasetError, match="does not exist") as caught:
            prepare_dataset(name, tmp_path)
        assert str(caught.value).endswith(benchmark.hint)
        files = [*benchmark.sources, *benchmark.raw]
        assert all(Path(file).name in benchmark.hint for file in files), files
        assert all(file in str(caught.value) for file in files)
        assert all(file in dataset_state(name, tmp_path).text for file in files)
        assert "http" in benchmark.hint and "<root>/" in benchmark.hint
    with pytest.raises(DatasetError, match="no data set named 'voc'; choose one of coco, "):
        prepare_dataset("voc", tmp_path)


def test_states(ade: Path, tmp_path: Path) -> None:
    assert dataset_state("voc_20", ade).status == "missing"
    assert dataset_state("ade20k_panoptic", ade).status == "incomplete"
    (ade / "VOCdevkit/VOC2012/SegmentationClass").mkdir(parents=True)
    assert dataset_state("voc_20", ade).status == "incomplete", "also what is converted counts"
    state = dataset_state("ade20k_150", ade)
    assert state.status == "unprepared"
    assert state.text.endswith("annotations_detectron2/training")
    assert state.remedy == "run tools/prepare_datasets.py ade20k_150"
    prepare_dataset("ade20k_150", ade, any_count=True)
    state = dataset_state("ade20k_150", ade)
    assert (state.status, state.remedy) == ("ready", "")
    assert state.text == (
        "ade20k_150_train: a part, 2 of 20,210 images, ade20k_150_val: a part, 2 of 2,000 images"
    )
    record = json.loads((ade / ".densedet/ade20k_150.json").read_text())
    assert record["splits"]["ade20k_150_val"]["counts"]["wall"] == 24
    for split, number in BENCHMARKS["ade20k_150"].splits.items():
        record["splits"][split]["images"] = number
    (ade / ".densedet/ade20k_150.json").write_text(json.dumps(record))
    state = dataset_state("ade20k_150", ade)
    assert state.text == "ade20k_150_train: 20,210 images, ade20k_150_val: 2,000 images"
    del record["splits"]["ade20k_150_val"]
    for text in (json.dumps(record), "cut"):
        (ade / ".densedet/ade20k_150.json").write_text(text)
        assert dataset_state("ade20k_150", ade).status == "unverified"
    folder = ade / ADE / "annotations_detectron2/training"
    for path in folder.iterdir():
        path.unlink()
    state = dataset_state("ade20k_150", ade)
    assert (state.status, state.text) == ("unprepared", f"{folder} is empty")


def test_what_is_broken_later_is_not_ready(ade: Path) -> None:
    prepare_dataset("ade20k_150", ade, any_count=True)
    path = ade / ADE / "annotations_detectron2/training/a.png"
    path.write_bytes(path.read_bytes()[:45])
    advice = r"annotations_detectron2/training was made before; .* make it anew with --force"
    with pytest.raises(ImageError, match=rf"a\.png is truncated or corrupt .*; .*{advice}"):
        prepare_dataset("ade20k_150", ade, any_count=True)
    assert dataset_state("ade20k_150", ade).status == "unverified"
    prepare_dataset("ade20k_150", ade, any_count=True, force=True)
    assert dataset_state("ade20k_150", ade).status == "ready"


def test_more_images_after_a_part_name_the_option(ade: Path, save: Callable[..., Path]) -> None:
    prepare_dataset("ade20k_150", ade, any_count=True)
    save(f"{ADE}/images/training/c.jpg")
    save(f"{ADE}/annotations/training/c.png", np.ones((4, 3), dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"c\.jpg has no label map .*made before; .* --force"):
        prepare_dataset("ade20k_150", ade, any_count=True)
    contents = prepare_dataset("ade20k_150", ade, any_count=True, force=True)
    assert contents["ade20k_150_train"].images == 3


def test_every_class_occurs_in_official_training_splits(
    ade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    official = BENCHMARKS["ade20k_150"]
    splits = dict.fromkeys(official.splits, 2)
    table = {**BENCHMARKS, "ade20k_150": replace(official, splits=splits)}
    monkeypatch.setattr(prepare, "BENCHMARKS", table)
    message = (
        "ade20k_150_train has no annotation of building, sky, floor, tree, ceiling and 144 more, "
        "which the official data set has: unpack the archives again, or .* --any-count"
    )
    with pytest.raises(DatasetError, match=message):
        prepare_dataset("ade20k_150", ade)
    assert dataset_state("ade20k_150", ade).status == "unverified"
    table["ade20k_150"] = replace(official, splits=splits, rare_classes=True)
    assert len(prepare_dataset("ade20k_150", ade)) == 2
    complete = {name for name, benchmark in BENCHMARKS.items() if benchmark.complete_splits}
    assert complete == set(BENCHMARKS) - {"context_459"}
    assert BENCHMARKS["ov_coco"].complete_splits == ("ov_coco_train_seen",)


def _coco(root: Path, names: Iterable[str]) -> None:
    """One image of 4 x 3 a split with one box of the first category, and these categories."""
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}
    images = [{"id": 1, "file_name": "1.jpg", "height": 4, "width": 3}]
    content = {"images": images, "annotations": [box], "categories": categories}
    (root / "coco/annotations").mkdir(parents=True, exist_ok=True)
    for part in ("train", "val"):
        path = root / f"coco/annotations/instances_{part}2017.json"
        path.write_text(json.dumps(content))


def test_only_seen_classes_have_to_occur(
    tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        save(f"coco/{part}2017/1.jpg")
    _coco(tmp_path, Vocabulary.named("ov_coco").labels)
    contents = prepare_dataset("ov_coco", tmp_path, any_count=True)
    assert contents["ov_coco_train_seen"].counts["person"] == 1
    splits = dict.fromkeys(BENCHMARKS["ov_coco"].splits, 1)
    table = {"ov_coco": replace(BENCHMARKS["ov_coco"], splits=splits)}
    monkeypatch.setattr(prepare, "BENCHMARKS", table)
    with pytest.raises(DatasetError, match="ov_coco_train_seen has no .* and 42 more, which"):
        prepare_dataset("ov_coco", tmp_path)


def test_every_category_has_to_be_listed(tmp_path: Path, save: Callable[..., Path]) -> None:
    for part in ("train", "val"):
        save(f"coco/{part}2017/1.jpg")
    labels = Vocabulary.named("ov_coco").labels
    _coco(tmp_path, [label for label in labels if label not in ("bicycle", "cat")])
    message = r"instances_train2017\.json has no category bicycle, cat; it belongs to another data"
    with pytest.raises(DatasetError, match=message):
        prepare_dataset("ov_coco", tmp_path, any_count=True)


@pytest.mark.parametrize(("orientation", "labels_fit"), [(None, False), (6, True), (3, False)])
def test_the_size_of_an_image_is_that_after_its_exif_orientation(
    ade: Path, save: Callable[..., Path], orientation: int | None, labels_fit: bool
) -> None:
    path = ade / f"{ADE}/images/training/b.jpg"
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(np.zeros((4, 3, 3), dtype=np.uint8)).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2]
    save(f"{ADE}/annotations/training/b.png", np.ones((3, 4), dtype=np.uint8))
    if labels_fit:
        assert len(prepare_dataset("ade20k_150", ade, any_count=True)) == 2
        return
    with pytest.raises(DatasetError, match=r"training/b\.png has another size than its image"):
        prepare_dataset("ade20k_150", ade, any_count=True)


def test_the_raw_files_are_not_needed_afterwards(ade: Path) -> None:
    prepare_dataset("ade20k_150", ade, any_count=True)
    (ade / ADE / "annotations").rename(ade / "elsewhere")
    assert dataset_state("ade20k_150", ade).status == "ready"
    prepare_dataset("ade20k_150", ade, any_count=True)
    with pytest.raises(DatasetError, match="annotations does not exist"):
        prepare_dataset("ade20k_150", ade, any_count=True, force=True)


def test_doctor_shows_every_data_set(
    ade: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Report((("a", "1"),), ()))
    assert cli.main(["doctor", "--datasets", "--root", str(ade)]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [line.split() for line in lines if line]
    found = {first[0]: first[1] for first in words if first[0] in BENCHMARKS}
    assert list(found) == list(BENCHMARKS)
    assert found["ade20k_150"] == "unprepared" and found["ov_coco"] == "missing"
    assert "  -> run tools/prepare_datasets.py ade20k_150" in lines
    assert "  -> tools/prepare_datasets.py voc_20 says where it is obtained" in lines


def test_register_all_registers_what_has_names(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_names = {"ade20k_full", "context_59", "context_459", "objects365"}
    register_all(tmp_path)
    register_all(tmp_path)
    for name, benchmark in BENCHMARKS.items():
        assert (set(benchmark.splits) <= set(DatasetCatalog)) == (name not in own_names)
    folder = tmp_path / "VOCdevkit/VOC2010"
    folder.mkdir(parents=True)
    (folder / "59_labels.txt").write_text("".join(f"{i}: c{i}\n" for i in range(1, 60)))
    (folder / "labels.txt").write_text("1: wall\n")
    register_all(tmp_path)
    assert {"context_59_train", "context_59_val"} <= set(DatasetCatalog)
    assert "context_459_val" not in set(DatasetCatalog)
    assert "context_459 is not registered" in caplog.text and "instead of 459" in caplog.text


def test_summary() -> None:
    counts = {"a": 3, **{f"c{i}": 0 for i in range(7)}}
    assert Contents(2, "pixels", counts, 1000).summary() == (
        "2 images, 3 pixels of 1 classes, 1,000 ignored; none of c0, c1, c2, c3, c4 and 2 more"
    )
    assert (
        Contents(1, "boxes", {"a": 1}, 0).summary() == "1 images, 1 boxes of 1 classes, 0 ignored"
    )


@pytest.fixture
def objects(tmp_path: Path, save: Callable[..., Path]) -> Path:
    """One image a split; the two files list the 365 categories in other orders."""
    categories: list[dict[str, Any]] = [{"id": i, "name": f"thing {i}"} for i in range(1, 366)]
    for part, order in (("train", categories), ("val", categories[::-1])):
        save(f"objects365v1/{part}/1.jpg")
        content = {
            "images": [{"id": 1, "file_name": "1.jpg", "height": 4, "width": 3}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 365, "bbox": [0, 0, 2, 2]}],
            "categories": order,
        }
        (tmp_path / f"objects365v1/objects365_{part}.json").write_text(json.dumps(content))
    return tmp_path


def test_objects365(objects: Path) -> None:
    assert dataset_state("objects365", objects).status == "unprepared"
    contents = prepare_dataset("objects365", objects, any_count=True)
    assert contents["objects365_val"].counts["thing 365"] == 1
    assert contents["objects365_val"].unit == "boxes"
    for part in ("train", "val"):
        (record,) = DatasetCatalog.get(f"objects365_{part}")
        assert record["annotations"][0]["category_id"] == 364
    path = objects / "objects365v1/val/1.jpg"
    Image.fromarray(np.zeros((3, 4, 3), dtype=np.uint8)).save(path)
    with pytest.raises(
        DatasetError, match=r"1\.jpg has another size than the annotation says, 3x4"
    ):
        prepare_dataset("objects365", objects, any_count=True)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"objects365v1/val/1\.jpg is not an image"):
        prepare_dataset("objects365", objects, any_count=True)
    path.unlink()
    with pytest.raises(ImageError, match=r"objects365v1/val/1\.jpg does not exist; check"):
        prepare_dataset("objects365", objects, any_count=True)


def test_objects365_of_version_2_and_a_wrong_id(objects: Path) -> None:
    path = objects / "objects365v1/objects365_val.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "categories": content["categories"][:300]}))
    with pytest.raises(DatasetError, match=r"objects365_val\.json has 300 categories instead of"):
        prepare_dataset("objects365", objects, any_count=True)
    assert not (objects / "objects365v1/categories.json").exists()
    content["annotations"][0]["image_id"] = 5
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="annotation 1 of image 5 belongs to an image that is"):
        prepare_dataset("objects365", objects, any_count=True)
    assert not (objects / ".densedet").exists()
