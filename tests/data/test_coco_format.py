"""Reading COCO-format files: the records, the splits, and each way in which a file is wrong."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util
import pytest
from detectron2.structures import BoxMode

from densedet.data import load_coco_format
from densedet.errors import DatasetError
from densedet.vocabulary import Category, Vocabulary

Write = Callable[..., Path]


def test_records_are_detectron2s(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Write, tmp_path: Path
) -> None:
    records = load_coco_format(write(tiny), tmp_path, vocabulary)
    assert [record["image_id"] for record in records] == [3, 7, 9]
    first, second, third = records
    assert first == {
        "file_name": str(tmp_path / "a.jpg"),
        "height": 50,
        "width": 50,
        "image_id": 3,
        "annotations": [
            {
                "bbox": [5.0, 6.0, 20.0, 10.0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "iscrowd": 0,
                "segmentation": [[5, 6, 25, 6, 25, 16, 5, 16]],
            },
            {
                "bbox": [30.0, 30.0, 10.0, 20.0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": [[30, 30, 40, 30, 40, 50, 30, 50]],
            },
        ],
    }
    (crowd,) = second["annotations"]
    assert crowd["iscrowd"] == 1
    assert mask_util.decode(crowd["segmentation"]).sum() == 2400, "uncompressed RLE is compressed"
    assert third["annotations"] == []


def test_seen_only_drops_unseen_annotations_and_keeps_images(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Write, tmp_path: Path
) -> None:
    records = load_coco_format(write(tiny), tmp_path, vocabulary, seen_only=True)
    classes = [[a["category_id"] for a in record["annotations"]] for record in records]
    assert classes == [[0], [], []]


def test_annotated_only_keeps_images_with_a_crowd(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Write, tmp_path: Path
) -> None:
    records = load_coco_format(write(tiny), tmp_path, vocabulary, annotated_only=True)
    assert [record["image_id"] for record in records] == [3, 7]


def test_unlisted_categories_are_an_error_or_dropped(
    tiny: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    path = write(tiny)
    vocabulary = Vocabulary.from_names(["cats", "dog"])
    with pytest.raises(DatasetError) as caught:
        load_coco_format(path, tmp_path, vocabulary)
    message = str(caught.value)
    assert str(path) in message and "annotation 1 of image 3" in message
    assert "'cat'" in message and "'cats'" in message and "drop_unlisted" in message
    records = load_coco_format(path, tmp_path, vocabulary, drop_unlisted=True)
    classes = [[a["category_id"] for a in record["annotations"]] for record in records]
    assert classes == [[1], [1], []]


def test_a_listed_category_without_annotations_need_not_be_known(
    tiny: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    vocabulary = Vocabulary.from_names(["dog", "cat"])
    assert len(load_coco_format(write(tiny), tmp_path, vocabulary)) == 3


def test_lvis_file_names_come_from_the_url(
    tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for image in tiny["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
        image["neg_category_ids"] = [5]
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps(tiny))
    record = load_coco_format(path, tmp_path / "coco", vocabulary)[0]
    assert record["file_name"] == str(tmp_path / "coco" / "train2017" / "a.jpg")
    assert record["neg_category_ids"] == [5]


def test_rounding_over_the_border_is_clipped(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Write, tmp_path: Path
) -> None:
    tiny["annotations"][0]["bbox"] = [-0.5, 45.25, 20.0, 5.5]
    box = load_coco_format(write(tiny), tmp_path, vocabulary)[0]["annotations"][0]["bbox"]
    assert box == [0.0, 45.25, 19.5, 4.75]


@pytest.mark.parametrize("box", [[5, 5, 0, 3], [5, 5, 3, -2], [50, 5, 0.5, 3]])
def test_boxes_without_area_are_skipped_and_counted(
    box: list[float],
    tiny: dict[str, Any],
    vocabulary: Vocabulary,
    write: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny["annotations"][0]["bbox"] = box
    with caplog.at_level(logging.WARNING, "densedet"):
        records = load_coco_format(write(tiny), tmp_path, vocabulary)
    assert [a["category_id"] for a in records[0]["annotations"]] == [1]
    assert "skipped 1 boxes without area" in caplog.text


def test_polygons_of_two_points_leave_the_box(
    tiny: dict[str, Any],
    vocabulary: Vocabulary,
    write: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiny["annotations"][0]["segmentation"] = [[1, 1, 5, 5, 7]]
    tiny["annotations"][1]["segmentation"].append([1, 1, 5, 5])
    with caplog.at_level(logging.WARNING, "densedet"):
        records = load_coco_format(write(tiny), tmp_path, vocabulary)
    first, second = records[0]["annotations"]
    assert (first["bbox"], first["segmentation"]) == ([5, 6, 20, 10], [])
    assert second["segmentation"] == [[30, 30, 40, 30, 40, 50, 30, 50]]
    assert (
        "1 instances have no polygon of three points or more, such as annotation 1 of image 3"
        in (caplog.text)
    )


@pytest.mark.parametrize(("expected", "warned"), [(2, False), (5, True)])
def test_expected_number_of_images(
    expected: int,
    warned: bool,
    tiny: dict[str, Any],
    vocabulary: Vocabulary,
    write: Write,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "densedet"):
        load_coco_format(write(tiny), tmp_path, vocabulary, expected_annotated=expected)
    assert "3 images, 2 of them with annotations" in caplog.text
    assert ("published data set has 5" in caplog.text) is warned


def _change(key: str, index: int, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data[key][index][field] = value

    return change


def _drop(key: str, index: int, field: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        del data[key][index][field]

    return change


NAN = float("nan")
BROKEN = {
    "far outside": (_change("annotations", 0, "bbox", [70, 5, 5, 5]), "annotation 1 of image 3"),
    "left of the image": (_change("annotations", 0, "bbox", [-3, 5, 9, 9]), "3 px outside"),
    "over the lower border": (_change("annotations", 1, "bbox", [30, 30, 9, 22]), "2 px outside"),
    "nan": (_change("annotations", 1, "bbox", [30, NAN, 9, 9]), "annotation 2 .*not finite"),
    "huge": (_change("annotations", 1, "bbox", [30, 10**400, 9, 9]), "four numbers"),
    "three numbers": (_change("annotations", 1, "bbox", [30, 30, 9]), "four numbers"),
    "no box": (_drop("annotations", 1, "bbox"), "annotation 2 of image 3 lacks bbox"),
    "id a list": (_change("annotations", 1, "id", [2]), r"annotation \[2\] .* cannot be one; give"),
    "ids of two types": (
        _change("annotations", 1, "id", "2"),
        "annotation 2 .* cannot be one; give",
    ),
    "image_id a list": (_change("annotations", 1, "image_id", [3]), r"2 of image \[3\] belongs to"),
    "category_id a list": (
        _change("annotations", 1, "category_id", [2]),
        r"category_id \[2\], which",
    ),
    "iscrowd two": (_change("annotations", 1, "iscrowd", 2), "2 of image 3 has iscrowd=2; give"),
    "image's id a list": (_change("images", 1, "id", [3]), r"image {'id': \[3\].* cannot be one"),
    "image's id text": (_change("images", 1, "id", "3"), "image {'id': '3'.* cannot be one; give"),
    "category's id a list": (_change("categories", 1, "id", [2]), r"{'id': \[2\].* cannot be one"),
    "file_name null": (_change("images", 1, "file_name", None), "image 3 has neither 'file_name'"),
    "no id": (_drop("annotations", 1, "id"), r"annotation \(without id\) of image 3 lacks id"),
    "no object": (lambda data: data["annotations"].append(3), "annotation 3 is not an object"),
    "unknown image": (_change("annotations", 1, "image_id", 8), "annotation 2 of image 8 belongs"),
    "unlisted category id": (_change("annotations", 1, "category_id", 1), "'categories' lacks"),
    "annotation id twice": (_change("annotations", 1, "id", 1), "annotation 1 .*occurs twice"),
    "image id twice": (_change("images", 1, "id", 7), "image 7 occurs twice"),
    "image without size": (_drop("images", 1, "width"), "needs 'id', 'width' and 'height'"),
    "image of no height": (_change("images", 1, "height", 0), "image 3 has size"),
    "image without file": (_drop("images", 1, "file_name"), "image 3 has neither"),
    "category name twice": (_change("categories", 2, "name", "cat "), "category id 5 .*twice"),
    "category without name": (_drop("categories", 2, "name"), "needs 'id' and 'name'"),
    "mask of another size": (
        _change("annotations", 2, "segmentation", {"size": [60, 40], "counts": [0, 2400]}),
        "annotation 3 .*run-length mask",
    ),
    "mask not finite": (
        _change("annotations", 0, "segmentation", [[5, 6, NAN, 6, 25, 16]]),
        "annotation 1 .*not finite",
    ),
    "no categories": (lambda data: data.pop("categories"), "no list 'categories'"),
    "annotations no list": (lambda data: data.update(annotations={}), "no list 'annotations'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_records_are_named(
    case: str, tiny: dict[str, Any], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    change, message = BROKEN[case]
    change(tiny)
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(tiny))
    with pytest.raises(DatasetError, match=message) as caught:
        load_coco_format(path, tmp_path, vocabulary)
    assert "broken.json" in str(caught.value)


def test_missing_file_gives_the_hint(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.json does not exist; get it at home"):
        load_coco_format(tmp_path / "none.json", tmp_path, vocabulary, hint="get it at home")
    with pytest.raises(DatasetError, match=r"none\.json does not exist$"):
        load_coco_format(tmp_path / "none.json", tmp_path, vocabulary)


@pytest.mark.parametrize("content", [b'{"images": [{"id": 1', b"", b"\xff\xfe\x00"])
def test_corrupt_json(content: bytes, vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cut\.json is not valid JSON"):
        load_coco_format(path, tmp_path, vocabulary)


def test_the_tolerance_can_be_set(
    tiny: dict[str, Any], vocabulary: Vocabulary, write: Write, tmp_path: Path
) -> None:
    tiny["annotations"][0]["bbox"] = [-3, 5, 9, 9]
    records = load_coco_format(write(tiny), tmp_path, vocabulary, box_tolerance=4)
    assert records[0]["annotations"][0]["bbox"] == [0, 5, 6, 9]


def test_white_space_around_names_is_ignored(
    tiny: dict[str, Any], write: Write, tmp_path: Path
) -> None:
    tiny["categories"][0]["name"] = "dog "
    vocabulary = Vocabulary((Category("cat"), Category("dog")))
    assert len(load_coco_format(write(tiny), tmp_path, vocabulary)[0]["annotations"]) == 2
