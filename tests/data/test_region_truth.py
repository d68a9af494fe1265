import copy
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from densedet.data import RegionTruthMapper, load_panoptic_format
from densedet.data.shapes_world import register_shapes_world
from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.errors import DatasetError, ImageError
from densedet.vocabulary import Vocabulary


def save_segments(ids, path):
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1)
    Image.fromarray(colours.astype(np.uint8)).save(path)


@pytest.fixture
def record(tmp_path):
    """An image of 60x40 pixels: stuff 7 at the left, thing 70000 in it, stuff 300 at the right."""
    ids = np.full((40, 60), 7)
    ids[:, 40:] = 300
    ids[10:22, 4:24] = 70_000
    save_segments(ids, tmp_path / "a.png")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    return {
        "file_name": str(tmp_path / "a.bmp"),
        "pan_seg_file_name": str(tmp_path / "a.png"),
        "image_id": 12,
        "height": 40,
        "width": 60,
        "segments_info": [
            {"id": 300, "category_id": 5, "isthing": False, "bbox": [0, 0, 1, 1], "iscrowd": 0},
            {"id": 70_000, "category_id": 2, "isthing": True, "bbox": [4, 10, 20, 12]},
            {"id": 7, "category_id": 4, "isthing": False},
        ],
    }


@pytest.mark.golden
def test_reference_data_set(golden_dir, tmp_path):
    content = json.loads((golden_dir / "region_dataset.json").read_text())
    size, patch = content["student_size"], content["patch"]
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    arrays = np.load(golden_dir / "region_dataset.npz")
    records = load_panoptic_format(path, tmp_path, tmp_path, Vocabulary.from_coco(path))
    annotations = sorted(content["annotations"], key=lambda entry: entry["image_id"])
    files = {entry["id"]: entry["file_name"] for entry in content["images"]}
    assert len(records) == len(annotations)
    for record, annotation in zip(records, annotations, strict=True):
        tag = "image" + files[record["image_id"]].partition(".")[0]
        segments = arrays[f"{tag}/segments"].astype(np.int64)
        save_segments(segments, record["pan_seg_file_name"])
        Image.new("RGB", segments.shape[::-1]).save(record["file_name"])

        sample = RegionTruthMapper(size, patch)(record)

        kept = arrays[f"{tag}/kept"].tolist()
        ids = {category["id"] for category in content["categories"]}
        ranks = {category_id: rank for rank, category_id in enumerate(sorted(ids))}
        segments_kept = [s for s, k in zip(annotation["segments_info"], kept, strict=True) if k]
        assert sample["labels"].tolist() == [ranks[s["category_id"]] for s in segments_kept]
        assert any(segment["iscrowd"] for segment in segments_kept)
        assert sample["labels"].tolist() == arrays[f"{tag}/labels"].tolist()
        assert sample["is_thing"].tolist() == arrays[f"{tag}/is_thing"].astype(bool).tolist()
        boxes = sample["regions"]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        assert area.tolist() == arrays[f"{tag}/area"].tolist()
        normalised = boxes / max(record["height"], record["width"])
        expected = torch.from_numpy(arrays[f"{tag}/boxes"])
        torch.testing.assert_close(normalised, expected, rtol=0, atol=1e-6)
        assert sample["crop_rectangles"].tolist() == arrays[f"{tag}/crop_rects"].tolist()
        assert sample["cells"].tolist() == arrays[f"{tag}/cells"].tolist()


def test_one_record(record):
    before = copy.deepcopy(record)
    sample = RegionTruthMapper(96, 16)(record)

    assert record == before
    pixels = np.asarray(Image.open(record["file_name"]))
    assert torch.equal(sample["image"], torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    # Stuff from its mask, to the last pixel inside; a thing from its bbox.
    boxes = [[40, 0, 59, 39], [4, 10, 24, 22], [0, 0, 39, 39]]
    assert sample["regions"].dtype == torch.float32 and sample["regions"].tolist() == boxes
    assert sample["crop_rectangles"].tolist() == [boxes[0], [0, 7, 29, 25], boxes[2]]
    assert sample["labels"].tolist() == [5, 2, 4]
    assert sample["is_thing"].tolist() == [False, True, False]
    assert sample["cells"].shape == (3, 6, 6)
    assert sample["cells"][0].nonzero()[:, 1].unique().tolist() == [4, 5]
    assert not sample["cells"][:, 4:].any()
    assert (sample["height"], sample["width"], sample["image_id"]) == (40, 60, 12)
    assert sample["mask_antialias"] is False


def test_options(record):
    tight = RegionTruthMapper(96, 16, crop_enlarge=1.0)(record)
    assert tight["crop_rectangles"].tolist()[1] == [4, 10, 24, 22]
    assert len(RegionTruthMapper(96, 16, max_segments=2)(record)["labels"]) == 2
    soft = RegionTruthMapper(48, 16, mask_antialias=True)(record)
    assert soft["mask_antialias"] is True
    assert soft["cells"].sum() > RegionTruthMapper(48, 16)(record)["cells"].sum()


@pytest.mark.parametrize(
    ("box", "kept"),
    [([4, 10, 8, 8], True), ([4, 10, 8, 7.9], False), ([0, 0, 1024, 1024], True),
     ([0, 0, 1024, 1025], False)],
)  # fmt: skip
def test_areas_outside_the_limits_are_dropped(record, box, kept):
    record["segments_info"][1]["bbox"] = box
    sample = RegionTruthMapper(96, 16)(record)
    assert (2 in sample["labels"].tolist()) is kept
    assert len(sample["cells"]) == len(sample["regions"]) == len(sample["is_thing"]) == 2 + kept
    assert len(sample["crop_rectangles"]) == 2 + kept


def test_an_image_without_regions(record):
    record["segments_info"] = []
    sample = RegionTruthMapper(96, 16)(record)
    assert sample["regions"].shape == sample["crop_rectangles"].shape == (0, 4)
    assert sample["cells"].shape == (0, 6, 6)
    assert sample["labels"].dtype == torch.int64 and len(sample["labels"]) == 0


def test_a_segment_that_the_map_lacks(record):
    record["segments_info"][2]["id"] = 8
    with pytest.raises(DatasetError, match=r"a\.png has no pixel of segment 8,"):
        RegionTruthMapper(96, 16)(record)


def test_a_thing_without_a_box_has_that_of_its_mask(record):
    expected = RegionTruthMapper(96, 16)(record)
    del record["segments_info"][1]["bbox"]
    found = RegionTruthMapper(96, 16)(record)
    assert found["regions"].tolist() == expected["regions"].tolist()
    assert found["regions"][1].tolist() == [4, 10, 24, 22]


@pytest.mark.parametrize("key", ["category_id", "isthing"])
def test_a_segment_that_lacks_a_key(record, key):
    del record["segments_info"][1][key]
    with pytest.raises(DatasetError, match=rf"segment 70000 of .*a\.png .*{key}"):
        RegionTruthMapper(96, 16)(record)


@pytest.mark.parametrize(("file", "key"), [("a.png", "pan_seg_file_name"), ("a.bmp", "file_name")])
def test_missing_and_corrupt_files(record, tmp_path, file, key):
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:60])
    with pytest.raises(ImageError, match=rf"{file}.*corrupt"):
        RegionTruthMapper(96, 16)(record)
    record[key] = str(tmp_path / "absent.png")
    with pytest.raises(ImageError, match=r"absent\.png does not exist"):
        RegionTruthMapper(96, 16)(record)


def test_sizes_that_differ(record, tmp_path):
    with pytest.raises(DatasetError, match=r"a\.bmp is 60x40 .*record says 50x40"):
        RegionTruthMapper(96, 16)({**record, "width": 50})
    save_segments(np.full((40, 61), 7), tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.bmp is 60x40 .*a\.png is 61x40"):
        RegionTruthMapper(96, 16)(record)


def test_shapes_world(tmp_path):
    write_shapes_world(tmp_path, ShapesWorldRecipe(train=1, val=2))
    register_shapes_world(tmp_path)
    records = DatasetCatalog.get("shapes_world_panoptic_val")
    vocabulary = Vocabulary.named("shapes_world")
    for record in records:
        sample = RegionTruthMapper(256, 16, crop_enlarge=1.0)(record)
        kinds = [vocabulary.kinds[label] == "thing" for label in sample["labels"]]
        assert sample["is_thing"].tolist() == kinds
        assert True in kinds and False in kinds
        assert sample["cells"].flatten(1).any(dim=1).all()
