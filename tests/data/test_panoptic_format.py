import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from densedet.data import load_panoptic_format, register_panoptic_format
from densedet.data.coco_benchmarks import register_coco_panoptic
from densedet.errors import DatasetError
from densedet.vocabulary import Category, Vocabulary

DATA = {
    "images": [
        {"id": 9, "file_name": "nine.jpg", "height": 30, "width": 40},
        {"id": 4, "file_name": "four.jpg", "height": 20, "width": 20},
        {"id": 5, "file_name": "without.jpg", "height": 20, "width": 20},
    ],
    "categories": [
        {"id": 50, "name": "sky", "isthing": 0},
        {"id": 7, "name": "dog", "isthing": 1},
        {"id": 31, "name": "cat", "isthing": 1},
        {"id": 12, "name": "grass", "isthing": 0},
    ],
    "annotations": [
        {
            "image_id": 9,
            "file_name": "nine.png",
            "segments_info": [
                {"id": 300, "category_id": 31, "bbox": [1, 2, 3, 4], "iscrowd": 0, "area": 9},
                {"id": 20, "category_id": 50, "bbox": [0, 0, 40, 10], "iscrowd": 0, "area": 400},
            ],
        },
        {
            "image_id": 4,
            "file_name": "four.png",
            "segments_info": [
                {"id": 8, "category_id": 7, "bbox": [5, 5, 9, 9], "iscrowd": 1, "area": 81},
                {"id": 3, "category_id": 12, "bbox": [0, 0, 20, 20], "iscrowd": 0},
            ],
        },
    ],
}


@pytest.fixture
def data():
    return copy.deepcopy(DATA)


@pytest.fixture
def write_panoptic(tmp_path):
    def write(content):
        path = tmp_path / "panoptic.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_categories_get_the_rank_of_their_id(data, write_panoptic):
    path = write_panoptic(data)
    vocabulary = Vocabulary.from_coco(path)
    assert vocabulary.labels == ("dog", "grass", "cat", "sky")

    records = load_panoptic_format(path, "images", "maps", vocabulary)

    assert records == [
        {
            "file_name": "images/four.jpg",
            "height": 20,
            "width": 20,
            "image_id": 4,
            "pan_seg_file_name": "maps/four.png",
            "segments_info": [
                {
                    "id": 8,
                    "category_id": 0,
                    "isthing": True,
                    "bbox": [5, 5, 9, 9],
                    "iscrowd": 1,
                    "area": 81,
                },
                {"id": 3, "category_id": 1, "isthing": False, "bbox": [0, 0, 20, 20], "iscrowd": 0},
            ],
        },
        {
            "file_name": "images/nine.jpg",
            "height": 30,
            "width": 40,
            "image_id": 9,
            "pan_seg_file_name": "maps/nine.png",
            "segments_info": [
                {
                    "id": 300,
                    "category_id": 2,
                    "isthing": True,
                    "bbox": [1, 2, 3, 4],
                    "iscrowd": 0,
                    "area": 9,
                },
                {
                    "id": 20,
                    "category_id": 3,
                    "isthing": False,
                    "bbox": [0, 0, 40, 10],
                    "iscrowd": 0,
                    "area": 400,
                },
            ],
        },
    ]


def test_the_vocabulary_gives_the_indices_not_the_file(data, write_panoptic):
    names = (("sky", "stuff"), ("bird", "thing"), ("cat", "thing"), ("dog", "thing"))
    names += (("grass", "stuff"),)
    vocabulary = Vocabulary(tuple(Category(name, kind=kind) for name, kind in names))
    records = load_panoptic_format(write_panoptic(data), "", "", vocabulary)
    assert [[s["category_id"] for s in r["segments_info"]] for r in records] == [[3, 4], [2, 0]]


def _segment(data):
    return data["annotations"][1]["segments_info"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["categories"][1].update(name="wolf"), "'wolf'.*not in the vocabulary"),
        (lambda d: d["categories"][1].update(isthing=0), "'dog' has isthing=0, but is thing"),
        (lambda d: d["categories"][3].pop("isthing"), "'grass' has isthing=None, but is stuff"),
        (lambda d: d["images"][1].pop("width"), "image .*'id': 4.* needs .*width"),
        (lambda d: d["images"][1].update(id=9), "image 9 occurs twice"),
        (lambda d: d["annotations"][1].update(image_id=77), "image 77 .*not in 'images'"),
        (lambda d: d["annotations"][1].update(image_id=9), "image 9 occurs twice"),
        (lambda d: d["annotations"][1].pop("segments_info"), "annotation .*needs .*segments_info"),
        (lambda d: d["annotations"][1].update(segments_info={}), "image 4 .*no list"),
        (lambda d: _segment(d).pop("id"), "segment .*'iscrowd': 1.* of image 4 needs .*id"),
        (lambda d: d["images"][1].update(width="wide"), r"image 4 has size \('wide', 20\); width"),
        (lambda d: d["images"][1].update(height=0), r"image 4 has size \(20, 0\); width and"),
        (lambda d: _segment(d).update(id=3), "segment 3 in .*image 4 occurs twice"),
        (lambda d: _segment(d).update(id=256**3), "segment 16777216 in .*image 4 .*no segment in"),
        (lambda d: _segment(d).update(id="x"), "segment x in .*image 4 .*no segment in a PNG"),
        (lambda d: _segment(d).update(id=0), "segment 0 in .*image 4 .*no segment in a PNG"),
        (lambda d: _segment(d).update(id=True), "segment True in .*image 4 .*no segment in a PNG"),
        (lambda d: _segment(d).update(category_id=[7]), r"segment 8 .* category_id \[7\].*lacks"),
        (lambda d: _segment(d).update(iscrowd=2), "segment 8 .*image 4 has iscrowd=2; give"),
        (lambda d: _segment(d).update(category_id="8"), "segment 8 .* category_id '8'.*lacks"),
        (
            lambda d: d["images"][1].update(id=[4]),
            r"image {'id': \[4\].* cannot be one; give whole",
        ),
        (lambda d: d["images"][1].update(id="4"), "image {'id': '4'.* cannot be one; give whole"),
        (lambda d: d["images"][1].update(file_name=None), "image 4 has a 'file_name' that is no"),
        (
            lambda d: d["categories"][1].update(id=[7]),
            r"category {'id': \[7\].* cannot be one; give",
        ),
        (lambda d: d["annotations"][1].update(image_id=[4]), r"image \[4\] .*not in 'images'"),
        (lambda d: d["annotations"][1].update(file_name=None), "image 4 has a 'file_name' that"),
        (lambda d: _segment(d).update(category_id=8), "segment 8 .* category_id 8.*lacks"),
        (lambda d: _segment(d).update(bbox="1234"), "segment 8 .*four numbers"),
        (lambda d: _segment(d).update(bbox=[1, 2, 3, 10**400]), "segment 8 .*four numbers"),
        (lambda d: _segment(d).update(bbox=[1, 2, 3]), "segment 8 .*four numbers"),
        (lambda d: _segment(d).update(bbox=[1, 2, float("nan"), 4]), "segment 8 .*not finite"),
        (lambda d: _segment(d).update(bbox=[1, 2, -3, 4]), "segment 8 .*negative side"),
        (lambda d: d.pop("images"), "no list 'images'"),
    ],
)
def test_errors_name_the_file_and_the_record(data, write_panoptic, change, message):
    vocabulary = Vocabulary.from_coco(data)
    change(data)
    path = write_panoptic(data)
    with pytest.raises(DatasetError, match=message) as caught:
        load_panoptic_format(path, "images", "maps", vocabulary)
    assert str(path) in str(caught.value)


def test_several_faults_are_said_at_once(data, write_panoptic):
    vocabulary = Vocabulary.from_coco(data)
    data["annotations"][0]["image_id"] = 77
    _segment(data)["category_id"] = 8
    data["annotations"][1]["segments_info"][1]["iscrowd"] = 2
    with pytest.raises(DatasetError) as caught:
        load_panoptic_format(write_panoptic(data), "", "", vocabulary)
    assert str(caught.value).endswith(
        "panoptic.json: 3 records are faulty: (1) the annotation of image 77 belongs to an image "
        "that is not in 'images'; add it or drop it (2) segment 8 in the annotation of image 4 has "
        "category_id 8, which 'categories' lacks (3) segment 3 in the annotation of image 4 has "
        "iscrowd=2; give 0 or 1"
    )
    data["annotations"] = [{"image_id": i} for i in range(12_000)]
    with pytest.raises(DatasetError) as caught:
        load_panoptic_format(write_panoptic(data), "", "", vocabulary)
    assert "12,000 records are faulty, the first 10 are: (1) annotation" in str(caught.value)
    assert "(10)" in str(caught.value) and "(11)" not in str(caught.value)


def test_numbers_that_are_written_otherwise(data, write_panoptic):
    vocabulary = Vocabulary.from_coco(data)
    expected = load_panoptic_format(write_panoptic(data), "", "", vocabulary)
    for image in data["images"]:
        image.update({key: float(image[key]) for key in ("id", "width", "height")})
    for annotation in data["annotations"]:
        annotation["image_id"] = float(annotation["image_id"])
        for segment in annotation["segments_info"]:
            segment.update({key: float(segment[key]) for key in ("id", "category_id")})
            segment.update({key: str(segment[key]) for key in ("area",) if key in segment})
    found = load_panoptic_format(write_panoptic(data), "", "", vocabulary)
    assert found == expected
    assert [type(s["id"]) for record in found for s in record["segments_info"]] == [int] * 4


def test_numbers_and_ids_as_text(data, write_panoptic):
    vocabulary = Vocabulary.from_coco(data)
    expected = load_panoptic_format(write_panoptic(data), "", "", vocabulary)
    for image in data["images"]:
        image.update({key: str(image[key]) for key in ("width", "height")})
    for annotation in data["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        for segment in annotation["segments_info"]:
            segment.update({key: str(segment[key]) for key in ("id", "category_id")})
            segment["iscrowd"] = str(segment.get("iscrowd", 0)) if segment.get("iscrowd") else None
    assert load_panoptic_format(write_panoptic(data), "", "", vocabulary) == expected


@pytest.mark.parametrize("box", ["missing", None, []])
@pytest.mark.parametrize("area", ["missing", None, "", "many", 0, -1, float("nan"), True, [9]])
def test_boxes_and_areas_are_not_needed(data, write_panoptic, box, area, caplog):
    vocabulary = Vocabulary.from_coco(data)
    segment = _segment(data)
    for key, value in (("bbox", box), ("area", area)):
        segment[key] = value
        if value == "missing":
            del segment[key]
    del data["annotations"][0]["segments_info"][1]
    record, _ = load_panoptic_format(write_panoptic(data), "", "", vocabulary)
    assert record["segments_info"][0] == {
        "id": 8,
        "category_id": 0,
        "isthing": True,
        "iscrowd": 1,
    }
    assert "panoptic.json: 2 segments have no area above 0" in caplog.text


def test_a_missing_file_says_where_it_comes_from(data, tmp_path):
    with pytest.raises(DatasetError, match=r"none.json does not exist; get it there"):
        load_panoptic_format(
            tmp_path / "none.json", "", "", Vocabulary.from_coco(data), hint="get it there"
        )


def test_registration_reads_nothing_until_the_data_set_is_loaded(data, tmp_path, write_panoptic):
    vocabulary = Vocabulary.from_coco(data)
    arguments = ("mini", tmp_path / "panoptic.json", tmp_path / "i", tmp_path / "m", vocabulary)
    register_panoptic_format(*arguments)
    register_panoptic_format(*arguments)
    with pytest.raises(DatasetError, match="panoptic.json does not exist"):
        DatasetCatalog.get("mini")

    write_panoptic(data)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/four.png").touch()

    assert [record["image_id"] for record in DatasetCatalog.get("mini")] == [4, 9]
    metadata = MetadataCatalog.get("mini")
    assert metadata.vocabulary is vocabulary
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 0, 31: 2}
    assert metadata.stuff_dataset_id_to_contiguous_id == {12: 1, 50: 3}
    DatasetCatalog.get("mini")
    with pytest.raises(DatasetError, match="'mini' is already registered"):
        register_panoptic_format("mini", "other.json", *arguments[2:])


def test_coco_panoptic_val_is_found_in_its_usual_place(tmp_path):
    register_coco_panoptic(tmp_path)
    vocabulary = MetadataCatalog.get("coco_panoptic_val").vocabulary
    assert (len(vocabulary), vocabulary.kinds.count("thing")) == (133, 80)
    with pytest.raises(DatasetError, match="panoptic_val2017.json does not exist; COCO 2017"):
        DatasetCatalog.get("coco_panoptic_val")

    folder = tmp_path / "coco" / "annotations"
    folder.mkdir(parents=True)
    categories = [
        {"id": 200, "name": "rug-merged", "isthing": 0},
        {"id": 90, "name": "toothbrush", "isthing": 1},
        {"id": 1, "name": "person", "isthing": 1},
    ]
    segments = [{"id": 1, "category_id": c["id"], "bbox": [0, 0, 9, 9]} for c in categories]
    segments = [{**segment, "id": i} for i, segment in enumerate(segments, 1)]
    content = {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 9, "width": 9}],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": segments}],
        "categories": categories,
    }
    (folder / "panoptic_val2017.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"segment map .*/1\.png of .* not exist; COCO 2017"):
        DatasetCatalog.get("coco_panoptic_val")
    (tmp_path / "coco/panoptic_val2017").mkdir()
    (tmp_path / "coco/panoptic_val2017/1.png").touch()
    (record,) = DatasetCatalog.get("coco_panoptic_val")
    assert [s["category_id"] for s in record["segments_info"]] == [132, 79, 0]
    assert record["pan_seg_file_name"] == str(tmp_path / "coco/panoptic_val2017/1.png")
    assert record["file_name"] == str(tmp_path / "coco/val2017/1.jpg")


def test_the_class_list_is_in_the_order_of_the_ids():
    """So the index in it is the rank of the id among COCO's 133."""
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    vocabulary = Vocabulary.named("coco_panoptic")
    entries = sorted(COCO_CATEGORIES, key=lambda entry: entry["id"])
    assert vocabulary.labels == tuple(entry["name"] for entry in entries)
    assert vocabulary.kinds == tuple("thing" if e["isthing"] else "stuff" for e in entries)
