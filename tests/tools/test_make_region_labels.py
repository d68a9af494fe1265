"""tools/make_region_labels.py as a user runs it, on a Shapes World written here."""

import json
import pickle
import shutil

import numpy as np
import pytest

from densedet.cli import exit_code
from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two scenes."""
    return write_shapes_world(tmp_path_factory.mktemp("world"), ShapesWorldRecipe(1, 2))


@pytest.fixture
def tool(load_script, capsys, tmp_path, world):
    """Run the tool in this process on the scenes; return code, stdout and stderr."""
    module = load_script("tools/make_region_labels.py")

    def run(*arguments, **changes):
        options = {
            "boxes": world / "annotations/instances_val.json",
            "image-root": world / "val",
            "vocabulary": "red star;blue ring;green ball;sky",
            "templates": "single",
            "output": tmp_path / "out/labels.json",
            **{key.replace("_", "-"): value for key, value in changes.items()},
        }
        chosen = [f"--{key}={value}" for key, value in options.items() if value is not None]
        code = exit_code(lambda: module.main([*chosen, *map(str, arguments)]))
        return code, *capsys.readouterr()

    return run


def test_boxes_of_an_annotation_file(tool, world, tmp_path):
    code, said, err = tool("--min-score=-1")
    assert code == 0, err
    source = json.loads((world / "annotations/instances_val.json").read_text())
    written = json.loads((tmp_path / "out/labels.json").read_text())
    keys = ("id", "file_name", "height", "width")
    assert written["images"] == [{key: image[key] for key in keys} for image in source["images"]]
    expected = sorted(tuple(a["bbox"]) for a in source["annotations"])
    assert sorted(tuple(a["bbox"]) for a in written["annotations"]) == expected
    assert {a["category_id"] for a in written["annotations"]} <= {1, 2, 3, 4}
    assert Vocabulary.from_coco(written).to_text() == "red star;blue ring;green ball;sky"
    assert written["info"]["model"] == "densedet-tiny"
    assert f"{len(expected)} boxes of 2 images labelled, 4 categories" in said and "2/2" in err


def test_the_highest_scores_are_kept(tool, tmp_path):
    assert tool("--min-score=-1")[0] == 0
    scores = [
        a["score"] for a in json.loads((tmp_path / "out/labels.json").read_text())["annotations"]
    ]
    limit = sorted(scores)[-2]
    code, _, err = tool(f"--min-score={limit - 0.00006}")
    assert code == 0, err
    kept = json.loads((tmp_path / "out/labels.json").read_text())
    assert [a["score"] for a in kept["annotations"]] == [s for s in scores if s >= limit]
    assert {image["id"] for image in kept["images"]} == {a["image_id"] for a in kept["annotations"]}


def test_categories_of_captions(tool, tmp_path):
    texts = ["a red star and a sky", "the Red Star", "a blue ring, a sky"]
    captions = {"annotations": [{"caption": text} for text in texts]}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    code, _, err = tool("--min-count=2", "--min-score=-1", captions=tmp_path / "captions.json")
    assert code == 0, err
    written = json.loads((tmp_path / "out/labels.json").read_text())
    assert [c["name"] for c in written["categories"]] == ["red star", "sky"]


def test_proposals_and_the_images_beside_them(tool, world, tmp_path):
    source = json.loads((world / "annotations/instances_val.json").read_text())
    first = source["images"][0]
    boxes = ([3, 4, 20, 30], [0, 0, 50, 10])
    proposals = [{"image_id": first["id"], "category_id": 1, "bbox": box} for box in boxes]
    (tmp_path / "results.json").write_text(json.dumps(proposals))
    code, _, err = tool(
        "--min-score=-1",
        boxes=None,
        proposals=tmp_path / "results.json",
        images=world / "annotations/instances_val.json",
    )
    assert code == 0, err
    written = json.loads((tmp_path / "out/labels.json").read_text())
    assert [image["file_name"] for image in written["images"]] == [first["file_name"]]
    assert sorted(a["bbox"] for a in written["annotations"]) == [[0, 0, 50, 10], [3, 4, 20, 30]]


@pytest.fixture
def detectron2_proposals(world, tmp_path):
    """A pickle with three boxes of the first scene, by no order of their scores."""
    image = json.loads((world / "annotations/instances_val.json").read_text())["images"][0]
    boxes = np.array([[3, 4, 23, 34], [0, 0, 50, 10], [7, 7, 40, 60]], dtype=np.float32)
    scores = np.array([0.5, -2.0, 3.0], dtype=np.float32)
    content = {"ids": [image["id"]], "boxes": [boxes], "objectness_logits": [scores]}
    (tmp_path / "proposals.pkl").write_bytes(pickle.dumps({**content, "bbox_mode": 0}))
    return tmp_path / "proposals.pkl"


def test_the_best_of_detectron2s_proposals(tool, world, tmp_path, detectron2_proposals):
    code, _, err = tool(
        "--min-score=-1",
        boxes=None,
        proposals=detectron2_proposals,
        images=world / "annotations/instances_val.json",
        max_boxes=2,
    )
    assert code == 0, err
    written = json.loads((tmp_path / "out/labels.json").read_text())
    assert [a["bbox"] for a in written["annotations"]] == [[7, 7, 33, 53], [3, 4, 20, 30]]


def test_the_best_proposals_of_a_file_with_images(tool, world, tmp_path):
    content = json.loads((world / "annotations/instances_val.json").read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["score"] = number
    (tmp_path / "proposals.json").write_text(json.dumps(content))
    code, _, err = tool(
        "--min-score=-1", boxes=None, proposals=tmp_path / "proposals.json", max_boxes=1
    )
    assert code == 0, err
    written = json.loads((tmp_path / "out/labels.json").read_text())
    last = {a["image_id"]: a["bbox"] for a in content["annotations"]}
    assert {a["image_id"]: a["bbox"] for a in written["annotations"]} == last
    assert len(written["annotations"]) == 2


def test_proposals_without_images_need_those(tool, tmp_path, detectron2_proposals):
    results = tmp_path / "results.json"
    results.write_text('[{"image_id": 1, "bbox": [3, 4, 20, 30]}]')
    for file in (detectron2_proposals, results):
        code, _, err = tool(boxes=None, proposals=file)
        (line,) = err.strip().splitlines()
        assert code == 2 and line.startswith(f"error: --proposals {file} does not list its images")
        assert line.endswith("with --images")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": None}, "one of the arguments --boxes --proposals is required"),
        ({"proposals": "x.json"}, "not allowed with argument"),
        ({"images": "x.json"}, "--images goes with --proposals"),
        ({"boxes": "absent.json"}, "annotation file absent.json does not exist"),
        ({"image_root": "absent"}, "does not exist; check the image folder"),
        ({"vocabulary": "absent.json"}, "absent.json"),
        ({"vocabulary": "red star;red star"}, "already used"),
        ({"captions": "absent.json"}, "caption file absent.json cannot be read"),
        ({"min_count": 0}, "--min-count 0 must be at least 1"),
        ({"max_boxes": 0}, "--max-boxes 0 must be at least 1"),
        ({"boxes": None, "proposals": "absent.pkl"}, "proposal file absent.pkl does not exist"),
        ({"min_score": 2}, "--min-score 2.0 is a cosine"),
        ({"min_score": 0.99}, "has a label of at least --min-score 0.99"),
        ({"enlarge": 0}, "--enlarge 0.0 must lie in 0..100"),
        ({"model": "densedet-small"}, "densedet ships no weights of 'densedet-small'"),
        ({"pretrained": "absent.pt"}, "absent.pt: no such checkpoint file"),
        ({"templates": "none"}, "no template set 'none'"),
        ({"crop_padding": "left"}, "invalid choice: 'left'"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(tool, tmp_path, changes, message):
    code, _, err = tool(**changes)
    lines = err.strip().splitlines()
    assert code == 2 and lines[-1].startswith("error: ") and message in lines[-1], err
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_leaves_the_old_file(tool, world, tmp_path):
    assert tool("--min-score=-1")[0] == 0
    before = (tmp_path / "out/labels.json").read_bytes()
    shutil.copytree(world / "val", tmp_path / "images")
    last = sorted((tmp_path / "images").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:300])
    code, _, err = tool("--min-score=-1", image_root=tmp_path / "images")
    assert code == 2 and f"{last.name} is truncated or corrupt" in err.splitlines()[-1]
    assert (tmp_path / "out/labels.json").read_bytes() == before
