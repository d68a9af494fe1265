"""Annotations that are made from arrays when they are looked at."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data import build as d2_build
from torch.utils.data import DataLoader

from densedet.data import (
    DetectionMapper,
    build_test_loader,
    get_records,
    load_coco_format,
    register_coco_format,
)
from densedet.data.record_list import AnnotationList, PackedRecords, RecordColumns
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary


@pytest.fixture
def records(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Callable[..., Path], tmp_path: Path
) -> list[dict[str, Any]]:
    return load_coco_format(write(tiny), tmp_path, vocabulary)


def test_they_are_a_sequence(records: list[dict[str, Any]]) -> None:
    annotations = records[0]["annotations"]
    assert isinstance(annotations, AnnotationList) and len(annotations) == 2
    assert annotations == list(annotations) == [annotations[0], annotations[-1]]
    assert annotations[:1] == [annotations[0]] and annotations != []
    assert repr(annotations) == repr(list(annotations))
    with pytest.raises(IndexError):
        annotations[2]
    assert [len(record["annotations"]) for record in records] == [2, 1, 0]


def test_a_change_that_would_be_lost_is_refused(records: list[dict[str, Any]]) -> None:
    annotations = records[0]["annotations"]
    with pytest.raises(TypeError, match=r"read-only.*copy\.deepcopy\(record\)"):
        annotations[0]["category_id"] = 2
    for change in (
        lambda a: a.pop("bbox"),
        lambda a: a.update(iscrowd=1),
        lambda a: a.__delitem__("bbox"),
    ):
        with pytest.raises(TypeError, match="read-only"):
            change(next(iter(annotations)))
    changed = copy.deepcopy(records[0])
    changed["annotations"][0]["category_id"] = 2
    changed["annotations"].pop()
    assert type(changed["annotations"]) is list and type(changed["annotations"][0]) is dict
    assert annotations[0]["category_id"] == 0 and len(annotations) == 2
    for again in (copy.deepcopy(annotations[0]), pickle.loads(pickle.dumps(annotations[0]))):
        again["iscrowd"] = 1


def test_pickled_they_are_plain(records: list[dict[str, Any]]) -> None:
    again = pickle.loads(pickle.dumps(records))
    assert again == records and type(again[0]["annotations"]) is list
    assert DatasetFromList(records, copy=False)[0] == records[0]


def test_packed_records_share_the_arrays(records: list[dict[str, Any]]) -> None:
    packed = PackedRecords(records)
    assert [packed[i] for i in range(len(packed))] == records
    assert packed[0]["annotations"].columns is records[0]["annotations"].columns
    assert packed._values.nbytes < 600 * len(records)
    again = pickle.loads(pickle.dumps(packed))  # what a spawned worker gets
    assert [again[i] for i in range(3)] == records
    assert again[0]["annotations"].columns is again[1]["annotations"].columns


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_get_the_same(context: str, records: list[dict[str, Any]]) -> None:
    loader = build_test_loader(records, _identity, num_workers=0)
    expected = [batch[0] for batch in loader]
    assert expected == records
    if context == "fork":
        several = DataLoader(
            loader.dataset, num_workers=1, collate_fn=_first, multiprocessing_context=context
        )
        assert list(several) == records
    else:
        assert [pickle.loads(pickle.dumps(loader.dataset))[i] for i in range(3)] == records


def test_detectron2_takes_them(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Callable[..., Path], tmp_path: Path
) -> None:
    register_coco_format("lazy", write(tiny), tmp_path, vocabulary)
    records = get_detection_dataset_dicts("lazy", filter_empty=True)
    assert [record["image_id"] for record in records] == [3], "a crowd alone is empty"
    assert len(DetectionMapper(True, [])(records[0])["instances"]) == 2
    json.dumps([dict(a) for a in records[0]["annotations"]], default=int)


@pytest.mark.parametrize("filter_empty", [True, False])
def test_records_are_those_of_detectron2_without_making_their_annotations(
    filter_empty: bool,
    tiny: dict[str, Any],
    vocabulary: Vocabulary,
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_coco_format("lazy", write(tiny), tmp_path, vocabulary)
    register_coco_format("more", write(tiny, "more.json"), tmp_path / "b", vocabulary)
    plain = copy.deepcopy(DatasetCatalog.get("more"))
    DatasetCatalog.register("plain", lambda: plain)
    MetadataCatalog.get("plain").thing_classes = list(vocabulary.labels)
    said: list[str] = []
    monkeypatch.setattr(d2_build, "log_first_n", lambda _level, text, key: said.append(text))
    names = ["lazy", "more", "plain"]
    expected = get_detection_dataset_dicts(names, filter_empty=filter_empty)
    with monkeypatch.context() as patch:
        patch.setattr(RecordColumns, "annotations", None)  # makes them
        records = get_records(names, filter_empty=filter_empty)
    assert records == expected and len(records) == (3 if filter_empty else 9)
    assert said[0] == said[1] and "category" in said[0]


def test_records_that_are_none(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Callable[..., Path], tmp_path: Path
) -> None:
    for annotation in tiny["annotations"]:
        annotation["iscrowd"] = 1
    register_coco_format("crowds", write(tiny), tmp_path, vocabulary)
    assert len(get_records("crowds", filter_empty=False)) == 3
    with pytest.raises(DatasetError, match="no image of crowds has an annotation that is no crowd"):
        get_records("crowds")
    DatasetCatalog.register("nothing", list)
    with pytest.raises(DatasetError, match="data set 'nothing' is empty"):
        get_records("nothing")


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(record)


def _first(batch: list[Any]) -> Any:
    return batch[0]
