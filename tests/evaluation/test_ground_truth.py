"""Restricting a ground truth to a vocabulary."""

import copy

import pytest

from densedet.errors import DatasetError
from densedet.evaluation import restrict_ground_truth

DATA = {
    "images": [{"id": i, "height": 10, "width": 20} for i in (1, 2, 3)],
    "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat "}, {"id": 6, "name": "car"}],
    "annotations": [
        {"id": 0, "image_id": 1, "category_id": 9, "bbox": [0, 0, 4, 5], "area": 7, "iscrowd": 1},
        {"id": 8, "image_id": 2, "category_id": 6, "bbox": [0, 0, 4, 5], "area": 7, "iscrowd": 0},
        {"id": 5, "image_id": 1, "category_id": 4, "bbox": [0, 0, 4, 5]},
    ],
}


def test_categories_images_and_annotations() -> None:
    before = copy.deepcopy(DATA)
    restricted, ids = restrict_ground_truth(DATA, ["kite", "cat", "dog"])
    assert ids == [10, 4, 9]
    assert restricted["categories"] == [
        {"id": 4, "name": "cat"},
        {"id": 9, "name": "dog"},
        {"id": 10, "name": "kite"},
    ]
    assert [(a["id"], a["category_id"]) for a in restricted["annotations"]] == [(1, 9), (2, 4)]
    assert [image["id"] for image in restricted["images"]] == [1, 2, 3]
    assert before == DATA, "the data are not modified"


def test_annotated_only() -> None:
    restricted, _ = restrict_ground_truth(DATA, ["dog"], annotated_only=True)
    assert [image["id"] for image in restricted["images"]] == [1], "a crowd is an annotation"


@pytest.mark.parametrize(
    ("segmentation", "area"),
    [
        (None, 20.0),
        ([[0, 0, 2, 0, 2, 3, 0, 3], [5, 5, 9, 5, 9, 7, 5, 7]], 14.0),
        ({"size": [10, 20], "counts": [10, 30, 160]}, 30.0),
    ],
)
def test_missing_area_and_crowd(segmentation: object, area: float) -> None:
    data = copy.deepcopy(DATA)
    if segmentation is not None:
        data["annotations"][2]["segmentation"] = segmentation
    restricted, _ = restrict_ground_truth(data, ["cat"])
    (annotation,) = restricted["annotations"]
    assert (annotation["area"], annotation["iscrowd"]) == (area, 0)


def test_annotation_of_an_unknown_image() -> None:
    data = copy.deepcopy(DATA)
    data["annotations"][2]["image_id"] = 77
    with pytest.raises(DatasetError, match="annotation 5 .* image 77"):
        restrict_ground_truth(data, ["cat"])
