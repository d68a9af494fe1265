"""Registering images with regions."""

import json
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode

from densedet.data import region_vocabulary, register_clipself, register_region_images
from densedet.errors import ConfigError, DatasetError
from densedet.regions import BoxRegions


def load(path: Path, **options):
    register_region_images("regions", path, path.parent, **options)
    return DatasetCatalog.get("regions")


def test_records(write, tiny):
    tiny["annotations"][0]["bbox"] = [-3, 6, 20, 0]  # boxes are taken as they are
    path = write(tiny)
    records = load(path)
    assert [r["image_id"] for r in records] == [3, 7, 9]
    assert records[0] == {
        "file_name": str(path.parent / "a.jpg"),
        "height": 50,
        "width": 50,
        "image_id": 3,
        "annotations": [
            {
                "bbox": [-3, 6, 20, 0],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "iscrowd": 0,
            },
            {
                "bbox": [30, 30, 10, 20],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 2,
                "iscrowd": 0,
            },
        ],
    }
    assert [a["iscrowd"] for a in records[1]["annotations"]] == [1]
    assert records[2]["annotations"] == []
    metadata = MetadataCatalog.get("regions")
    assert metadata.thing_classes == ["cat", "zebra", "dog"]  # ids 2, 5, 44
    assert metadata.thing_dataset_id_to_contiguous_id == {2: 0, 5: 1, 44: 2}
    assert metadata.json_file == str(path)


def test_annotated_only_leaves_out_images_with_crowds_alone(write, tiny):
    assert [r["image_id"] for r in load(write(tiny), annotated_only=True)] == [3]


def test_lvis_file_names(write, tiny):
    path = write(tiny)
    for image in tiny["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    path.write_text(json.dumps(tiny))
    assert load(path)[0]["file_name"] == str(path.parent / "train2017/a.jpg")


def test_annotations_need_no_ids_and_records_have_no_lists_of_lvis(write, tiny):
    tiny["images"][0]["neg_category_ids"] = [2]
    del tiny["annotations"][0]["id"], tiny["annotations"][2]["iscrowd"]
    tiny["annotations"][1]["id"] = tiny["annotations"][2]["id"]
    records = load(write(tiny))
    assert [len(record["annotations"]) for record in records] == [2, 1, 0]
    assert records[1]["annotations"][0]["iscrowd"] == 0
    assert records[1].keys() == {"file_name", "height", "width", "image_id", "annotations"}


def test_usable_by_detectron2(write, tiny):
    """Its loading function prints a histogram of the categories and checks them on the way."""
    path = write(tiny)
    register_region_images("regions", path, path.parent)
    records = get_detection_dataset_dicts("regions", filter_empty=False)
    assert len(records) == 3
    assert BoxRegions(shuffle=False)(records[0], (50, 50)).labels.tolist() == [0, 2]


def test_nothing_is_read_at_registration(tmp_path):
    register_region_images("regions", tmp_path / "none.json", tmp_path, hint="get it there")
    with pytest.raises(DatasetError, match=r"none.json does not exist; get it there"):
        DatasetCatalog.get("regions")


def test_same_name(write, tiny):
    path = write(tiny)
    register_region_images("regions", path, path.parent)
    register_region_images("regions", path, path.parent)
    with pytest.raises(DatasetError, match="'regions' is already registered"):
        register_region_images("regions", path, path.parent, annotated_only=True)


def first(kind: str, **changes):
    """A change to the first entry of a list; None removes the key."""

    def change(data):
        for key, value in changes.items():
            if value is None:
                del data[kind][0][key]
            else:
                data[kind][0][key] = value

    return change


def set_iscrowd(value):
    return lambda data: data["annotations"][0].update(iscrowd=value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["images"].clear(), "its list 'images' is empty"),
        (first("images", height=None), "image {.* needs 'id', 'width' and 'height'"),
        (first("images", height=0), r"image 7 has size \(60, 0\)"),
        (first("images", file_name=None), "image 7 has neither 'file_name' nor a 'coco_url'"),
        (first("images", id=3), "image 3 occurs twice"),
        (first("annotations", image_id=99), "annotation 1 of image 99 belongs to an image"),
        (first("annotations", category_id=99), "annotation 1 of image 3 has category_id 99"),
        (first("annotations", bbox=None), "annotation 1 of image 3 lacks bbox"),
        (first("annotations", bbox=[1, 2, 3]), r"annotation 1 of image 3 has box \[1, 2, 3\]"),
        (first("annotations", bbox=[1, 2, -3, 4]), r"annotation 1 of image 3 has box \[1, 2, -3"),
        (first("annotations", bbox=[1, 2, float("nan"), 4]), "annotation 1 of image 3 has box"),
        (first("annotations", bbox=[1, 2, 10**400, 4]), "annotation 1 of image 3 has box"),
        (first("annotations", bbox="wide"), "annotation 1 of image 3 has box 'wide'"),
        (lambda data: data["annotations"].append(5), "annotation 5 is not an object"),
        (first("categories", name="zebra"), "occurs twice"),
        (first("images", id="7"), "image {'id': 3,.* cannot be one; give whole numbers, or text"),
        (first("images", id=[7]), r"image {'id': \[7\],.* cannot be one"),
        (
            first("images", file_name=None, coco_url=5),
            "image 7 has neither 'file_name' nor a 'coco_url'",
        ),
        (first("annotations", image_id=[3]), r"annotation 1 of image \[3\] belongs to an image"),
        (first("annotations", category_id=[2]), r"annotation 1 .* has category_id \[2\], which"),
        (set_iscrowd(2), "annotation 1 of image 3 has iscrowd=2; give 0 or 1"),
        (set_iscrowd("no"), "annotation 1 of image 3 has iscrowd='no'; give 0 or 1"),
        (set_iscrowd(2), "annotation 1 of image 3 has iscrowd=2; give 0 or 1"),
    ],
)
def test_faulty_files(write, tiny, change, message):
    path = write(tiny)
    change(tiny)
    path.write_text(json.dumps(tiny))
    with pytest.raises(DatasetError, match=f"annotation file {re.escape(str(path))}: .*{message}"):
        load(path)


def test_proposals_of_a_file(write, tiny, tmp_path):
    results = [
        {"image_id": 3, "category_id": 1, "bbox": [1, 2, 10, 20], "score": 0.1},
        {"image_id": 3, "category_id": 1, "bbox": [5, 6, 7, 8], "score": 0.9},
        {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5},
    ]
    (tmp_path / "proposals.json").write_text(json.dumps(results))
    records = load(write(tiny), proposal_file=tmp_path / "proposals.json")
    assert records[0]["proposal_boxes"].tolist() == [[5, 6, 12, 14], [1, 2, 11, 22]]
    assert records[0]["proposal_objectness_logits"].tolist() == [0.9, 0.1]
    assert records[0]["proposal_bbox_mode"] == BoxMode.XYXY_ABS
    assert records[2]["proposal_boxes"].shape == (0, 4)
    regions = BoxRegions("proposals", shuffle=False, min_area=0, enlarge=1)
    assert regions(records[0], (50, 50)).boxes.tolist() == [[5, 6, 12, 14], [1, 2, 11, 22]]
    assert regions(records[2], (20, 30)).boxes.tolist() == [[0, 0, 7, 5]]


def test_proposals_of_another_data_set(write, tiny, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4]}]))
    with pytest.raises(DatasetError, match=r"p.json has none of the 3 images"):
        load(write(tiny), proposal_file=tmp_path / "p.json")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("clipself_coco_train", "coco/annotations/instances_train2017.json"),
        ("clipself_lvis_train", "lvis/lvis_v1_train.json"),
        ("clipself_coco_proposals", "coco/annotations/coco_proposals.json"),
        ("clipself_coco_regionclip", "coco/annotations/coco_pseudo_4764.json"),
    ],
)
def test_clipself_names_what_is_missing(tmp_path, name, file):
    register_clipself(tmp_path)
    register_clipself(tmp_path)
    with pytest.raises(DatasetError, match=rf"{re.escape(str(tmp_path / file))} does .*<root>"):
        DatasetCatalog.get(name)


def test_clipself_reads_detectron2s_layout(write, tiny, tmp_path, monkeypatch):
    source = write(tiny)
    folder = tmp_path / "sets/coco/annotations"
    folder.mkdir(parents=True)
    for name in ("instances_train2017", "coco_proposals", "coco_pseudo_4764"):
        (folder / f"{name}.json").write_bytes(source.read_bytes())
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    register_clipself()
    counts = {
        name: len(DatasetCatalog.get(f"clipself_coco_{name}"))
        for name in ("train", "proposals", "regionclip")
    }
    assert counts == {"train": 3, "proposals": 3, "regionclip": 1}
    images = {Path(r["file_name"]).parent for r in DatasetCatalog.get("clipself_coco_train")}
    assert images == {tmp_path / "sets/coco/train2017"}


def test_the_vocabulary_of_the_labels_has_the_order_of_the_records(write, tiny, tmp_path):
    source = write(tiny)
    register_clipself(tmp_path / "sets")
    with pytest.raises(DatasetError, match=r"coco_pseudo_4764.json does not .*make_region_labels"):
        region_vocabulary("clipself_coco_regionclip")
    (tmp_path / "sets/coco/annotations").mkdir(parents=True)
    (tmp_path / "sets/coco/annotations/coco_pseudo_4764.json").write_bytes(source.read_bytes())
    vocabulary = region_vocabulary("clipself_coco_regionclip")
    assert vocabulary.labels == ("cat", "zebra", "dog")  # ids 2, 5, 44
    DatasetCatalog.get("clipself_coco_regionclip")
    classes = MetadataCatalog.get("clipself_coco_regionclip").thing_classes
    assert list(vocabulary.labels) == classes


def test_a_vocabulary_of_nothing(write, tiny):
    with pytest.raises(ConfigError, match="no data set 'clipself_coco' with an annotation file"):
        region_vocabulary("clipself_coco")
    tiny["categories"][0]["name"] = " "
    path = write(tiny)
    register_region_images("regions", path, path.parent)
    with pytest.raises(
        DatasetError, match=rf"{re.escape(str(path))}: category .* needs 'id' and 'name'"
    ):
        region_vocabulary("regions")
