"""Annotation files as people have them: what is understood, and what is refused in one line."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog

from densedet.data import DetectionMapper, load_coco_format, register_coco_format
from densedet.data.annotation_reader import read_table
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary

Write = Callable[..., Path]
GOOD_POLYGON = [5, 6, 25, 6, 25, 16, 5, 16]


def _save(data: Any, folder: Path, encoding: str = "utf-8") -> Path:
    path = folder / "instances.json"
    path.write_bytes(json.dumps(data).encode(encoding))
    return path


def _load(data: Any, folder: Path, vocabulary: Vocabulary, **options: Any) -> Any:
    records = load_coco_format(_save(data, folder), folder, vocabulary, **options)
    return {record["image_id"]: list(record["annotations"]) for record in records}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks_are_skipped(
    encoding: str, tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    path = _save(tiny, tmp_path, encoding)
    assert len(load_coco_format(path, tmp_path, vocabulary)[0]["annotations"]) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"images": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (json.dumps({"images": "Z\u00fcrich"}, ensure_ascii=False).encode("latin-1"), "UTF-8"),
        (b'{"images": [], "annotations": [], "categories": [], "images": []}', "two .*'images'"),
        (b'{"images": [], "categories": []}', "no list 'annotations'"),
        (b'{"images": [], "annotations": null, "categories": []}', "no list 'annotations'"),
        (b"[]", "no list 'images'"),
        (b"NaN", "no list 'images'"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "not valid JSON"),
        (b"\x1f\x8b\x08\x00", "not valid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_annotation_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"instances\.json .*{message}") as caught:
        read_table(path)
    assert len(str(caught.value)) < 500


def test_a_folder_is_no_annotation_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no regular file"):
        read_table(tmp_path)


def test_the_name_of_a_list_may_be_a_category(
    tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    tiny["categories"][0]["supercategory"] = "images"
    tiny["info"] = {"images": 3}
    assert len(_load(tiny, tmp_path, vocabulary)[3]) == 2


def test_numbers_as_text_and_ids_of_another_type_are_understood(
    tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    expected = _load(tiny, tmp_path, vocabulary)
    for image in tiny["images"]:
        image.update(
            id=float(image["id"]), width=float(image["width"]), height=str(image["height"])
        )
    for annotation in tiny["annotations"]:
        annotation["bbox"] = [f" {value}.0" for value in annotation["bbox"]]
        annotation["category_id"] = str(annotation["category_id"])
        annotation["image_id"] = str(annotation["image_id"])
        annotation["id"] = float(annotation["id"])
    tiny["annotations"][0]["segmentation"] = [[str(value) for value in GOOD_POLYGON]]
    assert _load(tiny, tmp_path, vocabulary) == expected
    table = read_table(tmp_path / "instances.json")
    assert [type(image["id"]) for image in table.coco_data()["images"]] == [int] * 3


@pytest.mark.parametrize(
    ("value", "crowd"), [(None, 0), ("0", 0), ("1", 1), (1.0, 1), (True, 1), ("missing", 0)]
)
def test_crowds_as_people_write_them(
    value: Any, crowd: int, tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    tiny["annotations"][0]["iscrowd"] = value
    if value == "missing":
        del tiny["annotations"][0]["iscrowd"]
    found = read_table(_save(tiny, tmp_path)).coco_data()["annotations"][0]
    assert found["iscrowd"] == crowd


def test_ids_as_text_may_be_numbers_elsewhere(
    tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for entry in (*tiny["images"], *tiny["categories"]):
        entry["id"] = str(entry["id"])
    found = _load(tiny, tmp_path, vocabulary)
    assert {i: [a["category_id"] for a in found[i]] for i in found} == {
        "3": [0, 1],
        "7": [1],
        "9": [],
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("bbox", ["1,5", 1, 2, 3], r"box \['1,5', 1, 2, 3\]; give four numbers"),
        ("bbox", "1 2 3 4", "give four numbers"),
        ("bbox", [True, 1, 2, 3], "give four numbers"),
        ("bbox", {"x": 1}, "give four numbers"),
        ("bbox", None, "give four numbers"),
        ("bbox", ["inf", 1, 2, 3], "not finite"),
        ("bbox", [[1], 2, 3, 4], "give four numbers"),
        ("iscrowd", "2", "iscrowd='2'; give 0 or 1"),
        ("image_id", "1" * 5000, "belongs to an image that is not in 'images'"),
        ("bbox", [1e308] * 4, "reaches inf px outside"),
        ("image_id", True, "belongs to an image that is not in 'images'"),
        ("image_id", 3.5, "belongs to an image that is not in 'images'"),
        ("category_id", "cat", "has category_id 'cat', which 'categories' lacks"),
        ("category_id", None, "has category_id None"),
        ("id", True, "'id' that cannot be one"),
        ("id", 1.5, "'id' that cannot be one"),
        ("id", 10**30, "'id' that cannot be one"),
        ("segments_info", [], "lacks bbox, category_id; this is a panoptic file"),
        ("segmentation", "5 6 25 6", "neither polygons nor a run-length mask"),
        ("segmentation", 5, "neither polygons nor a run-length mask"),
        ("segmentation", [[5, 6, 25, 6, 25, 16], None], "an entry that is no list of coordinates"),
        # pycocotools takes gigabytes for these, or crashes
        ("segmentation", [[1, 1, 1e7, 1, 6, 6]], r"1e\+07 lies far outside its image, .* has 50"),
        ("segmentation", [[1, 1, -1e300, 1, 6, 6]], r"-1e\+300 lies far outside its image"),
        ("segmentation", [[1, 1, float("nan"), 1, 6, 6]], "nan is not finite"),
        ("segmentation", [[[5, 6], [25, 6], [25, 16]]], "is no coordinate; give x, y"),
        ("segmentation", [["a", 6, 25, 6, 25, 16]], "'a' is no coordinate"),
        ("segmentation", {"counts": [2500]}, "run lengths need a list 'size' and 'counts'"),
        ("segmentation", {"size": [50, 50]}, "run lengths need a list 'size' and 'counts'"),
        (
            "segmentation",
            {"size": [50, 50], "counts": [1200, 40]},
            "add up to 1,240 pixels .* 2,500",
        ),
        ("segmentation", {"size": [50, 50], "counts": [2000, 501]}, "add up to 2,501"),
        ("segmentation", {"size": [50, 50], "counts": [2501, -1]}, "not whole numbers from 0 on"),
        ("segmentation", {"size": [50, 50], "counts": "garbage~"}, "no compressed run lengths"),
        ("segmentation", {"size": [50, 50], "counts": "\u00fc1"}, "no compressed run lengths"),
        ("segmentation", {"size": [50, 50], "counts": "P1"}, "add up to 32 pixels"),
        ("segmentation", {"size": [50, 50], "counts": ""}, "no compressed run lengths"),
    ],
)
def test_what_is_refused(
    field: str,
    value: Any,
    message: str,
    tiny: dict[str, Any],
    vocabulary: Vocabulary,
    tmp_path: Path,
) -> None:
    tiny["annotations"][1][field] = value
    if field == "segments_info":
        tiny["annotations"][1] = {"image_id": 3, field: value}
    with pytest.raises(DatasetError, match=message) as caught:
        _load(tiny, tmp_path, vocabulary)
    assert "instances.json: annotation" in str(caught.value)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "degenerate", [[1, 1, 5, 5], [1, 1], [], [1, 1, 5, 5, 9], [1, 2, 3, 4, 5, 6, 7]]
)
def test_a_degenerate_polygon_among_good_ones_is_left_out(
    degenerate: list[float],
    order: int,
    tiny: dict[str, Any],
    vocabulary: Vocabulary,
    tmp_path: Path,
) -> None:
    tiny["annotations"][0]["segmentation"] = [degenerate, GOOD_POLYGON][::order]
    annotation = _load(tiny, tmp_path, vocabulary)[3][0]
    assert annotation["segmentation"] == [GOOD_POLYGON]
    entry = read_table(tmp_path / "instances.json").annotation(0)
    (encoded,) = mask_util.frPyObjects(entry["segmentation"], 50, 50)
    assert mask_util.area(encoded) == 200


@pytest.mark.parametrize(
    ("segmentation", "trained"),
    [
        ([[5, 6, 20, 10]], [GOOD_POLYGON]),  # a rectangle: that of the box
        ([[5, 6, 25, 16]], []),  # or of two corners, or of two points: nobody knows
        ([[5, 6, 20]], []),
        ([[5, 6], [20, 10]], []),
        ([[]], None),
        ([], None),
        (None, None),
        ("", None),
        (GOOD_POLYGON, [GOOD_POLYGON]),  # without the outer brackets
    ],
)
def test_masks_do_not_decide_over_boxes(
    segmentation: Any,
    trained: Any,
    tiny: dict[str, Any],
    vocabulary: Vocabulary,
    write: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write(tiny)
    tiny["annotations"][0]["segmentation"] = segmentation
    path.write_text(json.dumps(tiny))
    with caplog.at_level(logging.WARNING, "densedet"):
        record = load_coco_format(path, tmp_path, vocabulary)[0]
    assert [a["bbox"] for a in record["annotations"]] == [[5, 6, 20, 10], [30, 30, 10, 20]]
    assert record["annotations"][0].get("segmentation") == trained
    assert len(DetectionMapper(True, [])(record)["instances"]) == 2
    if trained is None:
        with pytest.raises(DatasetError, match="no segmentation"):
            DetectionMapper(True, [], use_instance_mask=True)(record)
    else:
        masks = DetectionMapper(True, [], use_instance_mask=True)(record)["instances"].gt_masks
        assert [int(mask.sum()) for mask in masks.tensor] == [200] * len(trained) + [200]
        degenerate = "1 instances have no polygon of three points" in caplog.text
        assert degenerate is (trained == [])


def test_several_faulty_records_are_said_at_once(
    tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    template = tiny["annotations"].pop(0)
    tiny["annotations"] = [{**template, "id": i, "bbox": [0, 0, i, "x"]} for i in range(37)]
    tiny["annotations"][20] = {**template, "id": 99}
    with pytest.raises(DatasetError) as caught:
        _load(tiny, tmp_path, vocabulary)
    message = str(caught.value)
    assert "36 records are faulty, the first 10 are: (1) annotation 0 of image 3 has box" in message
    assert message.count("annotation ") == 11 and "(10) annotation 9 " in message

    for image in tiny["images"]:
        del image["width"]
    with pytest.raises(DatasetError, match=r"3 records are faulty: \(1\) image .* \(3\) image"):
        _load(tiny, tmp_path, vocabulary)


def test_boxes_outside_name_the_option_and_all_of_them(
    tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for annotation in tiny["annotations"][:2]:
        annotation["bbox"] = [-3, 5, 9, 9]
    with pytest.raises(DatasetError, match="2 records are faulty.*3 px outside.*box_tolerance"):
        _load(tiny, tmp_path, vocabulary)


@pytest.mark.parametrize(
    ("area", "expected"), [("12", None), (None, None), (-1, None), (True, None), (7, 7.0)]
)
def test_areas_that_are_none_are_missing(
    area: Any, expected: float | None, tiny: dict[str, Any], tmp_path: Path
) -> None:
    tiny["annotations"][0]["area"] = area
    assert read_table(_save(tiny, tmp_path)).annotation(0).get("area") == expected


def test_backslashes_in_file_names(
    tiny: dict[str, Any],
    vocabulary: Vocabulary,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for image in tiny["images"]:
        image["file_name"] = "train\\" + image["file_name"]
    path = _save(tiny, tmp_path)
    with caplog.at_level(logging.WARNING, "densedet"):
        records = load_coco_format(path, tmp_path, vocabulary)
    assert records[0]["file_name"] == str(tmp_path / "train" / "a.jpg")
    assert "3 file names have backslashes, such as 'train\\\\b.jpg'" in caplog.text
    (tmp_path / "train\\b.jpg").touch()
    records = load_coco_format(path, tmp_path, vocabulary)
    assert records[0]["file_name"] == str(tmp_path / "train\\a.jpg"), "there is such a file"


def test_the_root_category_of_roboflow_is_named(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for entry in tiny["categories"]:
        entry["supercategory"] = "animals"
    tiny["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    vocabulary = Vocabulary.from_names(["animals", "cat", "dog", "zebra"])
    with caplog.at_level(logging.WARNING, "densedet"):
        _load(tiny, tmp_path, vocabulary)
    assert "category 'animals' has no annotation and is the group of all others" in caplog.text


def test_an_lvis_file_of_another_version_is_called_that(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    lvis = Vocabulary.named("ov_lvis")
    tiny["categories"] = [{"id": i, "name": f"thing {i}"} for i in range(1, 1231)]
    for image in tiny["images"]:
        image.update(neg_category_ids=[3], not_exhaustive_category_ids=[])
    with pytest.raises(DatasetError, match=r"LVIS v0\.5 \(1,230 categories\).* LVIS v1 \(1,203\)"):
        _load(tiny, tmp_path, lvis)


@pytest.mark.parametrize("value", [None, "3", 3, [None], [77], [[3]]])
@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
def test_the_lists_of_lvis_are_lists_of_categories(
    key: str, value: Any, tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    tiny["images"][0].update(neg_category_ids=["2", 5.0], not_exhaustive_category_ids=[])
    path = _save(tiny, tmp_path)
    record = load_coco_format(path, tmp_path, vocabulary)[1]
    assert (record["neg_category_ids"], record["not_exhaustive_category_ids"]) == ([2, 5], [])
    tiny["images"][0][key] = value
    with pytest.raises(DatasetError, match=rf"image 7 has {key}=.*or \[\]"):
        _load(tiny, tmp_path, vocabulary)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 1, "name": None}, "needs 'id' and 'name'"),
        ({"id": 1, "name": ["a"]}, "needs 'id' and 'name'"),
        ({"name": "a"}, "needs 'id' and 'name'"),
        ({"id": True, "name": "a"}, "cannot be one"),
        ({"id": 2.0, "name": "a"}, "occurs twice"),
        (None, "needs 'id' and 'name'"),
    ],
)
def test_faulty_categories(entry: Any, message: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["categories"].append(entry)
    with pytest.raises(DatasetError, match=message):
        read_table(_save(tiny, tmp_path))


def test_categories_that_are_numbers_have_names(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["categories"].append({"id": 1, "name": 0})
    assert read_table(_save(tiny, tmp_path)).names[1] == "0"


def test_reading_costs_a_look_at_each_category_once(tmp_path: Path) -> None:
    """Half a minute for 20,000 categories, when each name was compared with all before."""
    categories = [{"id": i, "name": f"class {i}"} for i in range(20_000)]
    data = {"images": [], "annotations": [], "categories": categories}
    assert len(read_table(_save(data, tmp_path)).names) == 20_000


def test_the_columns_are_those_of_the_file(
    tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    del tiny["annotations"][1]["id"]
    table = read_table(_save(tiny, tmp_path))
    assert table.boxes.tolist() == [a["bbox"] for a in tiny["annotations"]]
    assert table.images.tolist() == [1, 1, 0] and table.labels.tolist() == [1, 0, 0]
    assert table.ids.tolist() == [1, 2, 3] and table.unnumbered.tolist() == [False, True, False]
    assert table.sizes.tolist() == [[40, 60], [50, 50], [20, 30]]
    assert np.isnan(table.areas).all()
    register_coco_format("no ids", table.path, tmp_path, vocabulary)
    with pytest.raises(DatasetError, match=r"annotation \(without id\) of image 3 lacks id"):
        DatasetCatalog.get("no ids")
