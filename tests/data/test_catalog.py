"""Registration by a call, and the splits of OV-COCO and OV-LVIS made from official-format files."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

import densedet.data
from densedet.data import register_all, register_coco_format
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

NAMES = ("ov_coco_train_seen", "ov_coco_val", "ov_lvis_train_seen", "ov_lvis_val")


def test_metadata_and_records(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(tiny)
    register_coco_format("tiny", path, tmp_path, vocabulary, seen_only=True)
    metadata = MetadataCatalog.get("tiny")
    assert metadata.thing_classes == ["cat", "dog", "zebra"]
    assert metadata.vocabulary is vocabulary
    assert (metadata.json_file, metadata.image_root) == (str(path), str(tmp_path))
    assert metadata.evaluator_type == "coco"
    records = get_detection_dataset_dicts("tiny", filter_empty=True)
    assert [len(record["annotations"]) for record in records] == [1]
    assert metadata.thing_dataset_id_to_contiguous_id == {44: 1, 2: 0, 5: 2}
    assert len(DatasetCatalog.get("tiny")) == 3, "loading a second time is fine"


def test_registering_twice(tmp_path: Path, vocabulary: Vocabulary) -> None:
    register_coco_format("x", tmp_path / "a.json", tmp_path, vocabulary, drop_unlisted=True)
    same = Vocabulary.from_dict(vocabulary.to_dict())
    register_coco_format("x", str(tmp_path / "a.json"), tmp_path, same, drop_unlisted=True)
    with pytest.raises(DatasetError, match=r"'x' is already registered.*a\.json.*b\.json"):
        register_coco_format("x", tmp_path / "b.json", tmp_path, vocabulary, drop_unlisted=True)
    with pytest.raises(DatasetError, match="drop_unlisted=True instead of drop_unlisted=False"):
        register_coco_format("x", tmp_path / "a.json", tmp_path, vocabulary)
    other = vocabulary.with_unseen([])
    with pytest.raises(DatasetError, match=f"vocabulary={vocabulary.digest()[:12]}"):
        register_coco_format("x", tmp_path / "a.json", tmp_path, other, drop_unlisted=True)


def test_a_name_of_detectron2_is_not_taken(tmp_path: Path, vocabulary: Vocabulary) -> None:
    DatasetCatalog.register("foreign", list)
    with pytest.raises(DatasetError, match="'foreign' is already registered"):
        register_coco_format("foreign", tmp_path / "a.json", tmp_path, vocabulary)


def test_register_all_reads_no_file_and_says_where_the_data_are_from(tmp_path: Path) -> None:
    register_all(tmp_path)
    register_all(tmp_path)
    assert set(NAMES) <= set(DatasetCatalog)
    assert len(MetadataCatalog.get("ov_coco_val").thing_classes) == 65
    assert len(MetadataCatalog.get("ov_lvis_val").thing_classes) == 1203
    for name in NAMES:
        with pytest.raises(DatasetError) as caught:
            DatasetCatalog.get(name)
        message = str(caught.value)
        assert MetadataCatalog.get(name).json_file in message
        assert "<root>/coco/train2017" in message and "DETECTRON2_DATASETS" in message
        source = "lvisdataset.org" if "lvis" in name else "cocodataset.org/#download"
        assert source in message


def test_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "here"))
    register_all()
    file = MetadataCatalog.get("ov_coco_val").json_file
    assert file == str(tmp_path / "here/coco/annotations/instances_val2017.json")


def _official_coco(categories: list[int]) -> dict[str, Any]:
    """One image a category id, listed under all 80 of COCO's categories, in COCO's order."""
    things = [c for c in COCO_CATEGORIES if c["isthing"]]
    return {
        "images": [
            {"id": i, "width": 20, "height": 20, "file_name": f"{i}.jpg"} for i in categories
        ],
        "categories": [{"id": c["id"], "name": c["name"]} for c in things],
        "annotations": [
            {"id": i, "image_id": i, "category_id": i, "bbox": [1, 1, 9, 9], "iscrowd": 0}
            for i in categories
        ],
    }


def test_ov_coco_is_computed_from_the_official_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # person (seen), airplane (unseen), traffic light (unused), toothbrush (seen, the last)
    folder = tmp_path / "coco/annotations"
    folder.mkdir(parents=True)
    for part in ("train", "val"):
        content = json.dumps(_official_coco([1, 5, 10, 90]))
        (folder / f"instances_{part}2017.json").write_text(content)
    register_all(tmp_path)
    with caplog.at_level(logging.WARNING, "densedet"):
        train = DatasetCatalog.get("ov_coco_train_seen")
        val = DatasetCatalog.get("ov_coco_val")
    assert [[a["category_id"] for a in r["annotations"]] for r in train] == [[0], [], [], [64]]
    assert [[a["category_id"] for a in r["annotations"]] for r in val] == [[0], [4], [64]]
    assert val[0]["file_name"] == str(tmp_path / "coco/val2017/1.jpg")
    assert "published data set has 107761" in caplog.text
    assert "published data set has 4836" in caplog.text


def test_every_class_list_name_is_the_files_own(tmp_path: Path) -> None:
    official = {c["id"]: c["name"] for c in COCO_CATEGORIES if c["isthing"]}
    vocabulary = Vocabulary.named("ov_coco")
    assert set(vocabulary.labels) < set(official.values())
    ids = sorted(i for i, name in official.items() if name in vocabulary.labels)
    assert [official[i] for i in ids] == list(vocabulary.labels)
    assert [vocabulary.index(official[i]) for i in (1, 5, 90)] == [0, 4, 64]


def _official_lvis() -> dict[str, Any]:
    labels = Vocabulary.named("ov_lvis").labels
    return {
        "images": [
            {
                "id": 5,
                "width": 20,
                "height": 20,
                "coco_url": "http://images.cocodataset.org/train2017/000000000005.jpg",
                "neg_category_ids": [3],
                "not_exhaustive_category_ids": [],
            }
        ],
        "categories": [{"id": i, "name": name} for i, name in enumerate(labels, 1)],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": i, "bbox": [1, 1, 9, 9], "area": 81.0}
            for i in range(1, 1204)
        ],
    }


def test_ov_lvis_is_computed_from_the_official_file(tmp_path: Path) -> None:
    (tmp_path / "lvis").mkdir()
    for part in ("train", "val"):
        (tmp_path / f"lvis/lvis_v1_{part}.json").write_text(json.dumps(_official_lvis()))
    register_all(tmp_path)
    (train,) = DatasetCatalog.get("ov_lvis_train_seen")
    (val,) = DatasetCatalog.get("ov_lvis_val")
    assert [a["category_id"] for a in val["annotations"]] == list(range(1203)), "LVIS id - 1"
    assert len(train["annotations"]) == 866, "the 405 frequent and 461 common"
    assert train["file_name"] == str(tmp_path / "coco/train2017/000000000005.jpg")
    assert MetadataCatalog.get("ov_lvis_val").evaluator_type == "lvis"


def test_names_of_the_package_can_all_be_imported() -> None:
    assert sorted(densedet.data.__all__) == sorted(densedet.data._MODULES)
    for name in densedet.data.__all__:
        assert callable(getattr(densedet.data, name)), name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        densedet.data.nothing  # noqa: B018
