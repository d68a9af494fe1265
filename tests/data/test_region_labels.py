"""Pseudo-labels of boxes by the shipped CLIP, on a Shapes World written here."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog
from PIL import Image

from densedet.clip import ClassEmbeddings, VocabularyEmbedder, create_visual
from densedet.data.region_labels import (
    RegionLabeller,
    frequent_categories,
    label_boxes,
    label_file,
    read_boxes,
)
from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.errors import DatasetError, ImageError, VocabularyError
from densedet.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Eight scenes: the annotation file, and the folder of the images."""
    root = write_shapes_world(tmp_path_factory.mktemp("world"), ShapesWorldRecipe(1, 8))
    return root / "annotations/instances_val.json", root / "val"


@pytest.fixture(scope="module")
def things():
    return Vocabulary.named("shapes_world", "thing")


@pytest.fixture(scope="module")
def labeller(things):
    embeddings = VocabularyEmbedder("densedet-tiny", "shipped", templates="single")(things)
    return RegionLabeller(create_visual("densedet-tiny", "shipped"), embeddings, enlarge=1.0)


def test_most_things_get_their_own_name(world, things, labeller):
    file, folder = world
    data = json.loads(file.read_text())
    annotations = label_boxes(read_boxes(file, folder), labeller, -1.0)
    names = {c["id"]: c["name"] for c in data["categories"]}
    truth = sorted(data["annotations"], key=lambda a: a["image_id"])
    assert [a["id"] for a in annotations] == list(range(1, len(truth) + 1))
    right = 0
    for found, true in zip(annotations, truth, strict=True):
        assert found["image_id"] == true["image_id"]
        assert found["bbox"] == pytest.approx(true["bbox"], abs=0.01)
        assert found["area"] == pytest.approx(true["bbox"][2] * true["bbox"][3], abs=0.01)
        right += things.labels[found["category_id"] - 1] == names[true["category_id"]]
    assert right / len(truth) > 0.5  # of 32 names; chance is 3 percent


def test_the_score_is_the_cosine_of_the_closest_synonym(labeller):
    visual = labeller.visual
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)
    vectors = F.normalize(torch.randn(5, visual.embed_dim), dim=1)
    embeddings = ClassEmbeddings(vectors, torch.tensor([0, 0, 1, 1, 1]), torch.zeros(1))
    # a crop of the native size is the image itself
    values = (image / 255 - torch.tensor(visual.pixel_mean)[:, None, None]) / torch.tensor(
        visual.pixel_std
    )[:, None, None]
    with torch.no_grad():
        cosines = F.normalize(visual.embed_images(values[None]), dim=1)[0] @ vectors.T
    labels, scores = RegionLabeller(visual, embeddings)(image, torch.tensor([[0.0, 0, 48, 48]]))
    assert labels.tolist() == [0 if cosines.argmax() < 2 else 1]
    assert scores.item() == pytest.approx(cosines.max().item(), abs=1e-5)


def test_boxes_are_clipped_and_low_scores_left_out(tmp_path):
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    boxes = [[-5.0, 10, 20, 90], [60, 0, 70, 10], [1, 2, 3, 4], [0, 0, 50, 40]]
    record = {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 7,
        "boxes": torch.tensor(boxes, dtype=torch.float64),
    }
    unused = {"file_name": "absent", "image_id": 8, "boxes": torch.zeros(0, 4)}

    def labeller(image, clipped):
        assert image.shape == (3, 40, 50)
        assert clipped.tolist() == [[0, 10, 20, 40], [1, 2, 3, 4], [0, 0, 50, 40]]
        return torch.tensor([4, 2, 0]), torch.tensor([0.5, 0.3, 0.2999])

    found = label_boxes([record, unused], labeller, 0.3)
    common = {"image_id": 7, "iscrowd": 0}
    assert found == [
        {**common, "id": 1, "category_id": 5, "bbox": [0, 10, 20, 30], "area": 600, "score": 0.5},
        {**common, "id": 2, "category_id": 3, "bbox": [1, 2, 2, 2], "area": 4, "score": 0.3},
    ]


def test_a_missing_image(labeller):
    boxes = torch.tensor([[0.0, 0, 5, 5]])
    record = {"file_name": "no/such.jpg", "image_id": 1, "boxes": boxes}
    with pytest.raises(ImageError, match=r"no/such\.jpg does not exist"):
        label_boxes([record], labeller, 0.0)


def test_the_file_has_labelled_images_and_the_whole_vocabulary():
    vocabulary = Vocabulary.parse("zebra;ant,emmet;cow")
    sizes = {"height": 4, "width": 5, "boxes": torch.zeros(1, 4)}
    content = label_file(
        [
            {"image_id": 3, "file_name": "root/b/c.jpg", **sizes},
            {"image_id": 1, "file_name": "root/b/a.jpg", **sizes},
        ],
        "root",
        [{"id": 1, "image_id": 1, "category_id": 2}],
        vocabulary,
        {"model": "m"},
    )
    assert content == {
        "info": {"model": "m"},
        "images": [{"id": 1, "file_name": "b/a.jpg", "height": 4, "width": 5}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2}],
        "categories": [
            {"id": 1, "name": "zebra"},
            {"id": 2, "name": "ant"},
            {"id": 3, "name": "cow"},
        ],
    }
    assert Vocabulary.from_coco(content).labels == vocabulary.labels


def test_boxes_of_annotations_and_of_proposals(tmp_path, world):
    file, folder = world
    data = json.loads(file.read_text())
    data["annotations"] = data["annotations"][:2]
    first, crowd = data["annotations"]
    first["image_id"] = crowd["image_id"] = data["images"][3]["id"]
    first["bbox"], crowd["iscrowd"] = [1.5, 2, 10, 20], 1
    (tmp_path / "boxes.json").write_text(json.dumps(data))
    entries = [{"image_id": first["image_id"], "bbox": [3, 4, 6, 8]}]
    (tmp_path / "results.json").write_text(json.dumps(entries))

    records = read_boxes(tmp_path / "boxes.json", folder)
    assert [r["boxes"].tolist() for r in records] == [
        [[1.5, 2, 11.5, 22]] if r["image_id"] == first["image_id"] else [] for r in records
    ]
    assert {r["boxes"].dtype for r in records} == {torch.float64}
    again = read_boxes(tmp_path / "boxes.json", folder, tmp_path / "results.json")
    assert [r["boxes"].tolist() for r in again] == [
        [[3, 4, 9, 12]] if r["image_id"] == first["image_id"] else [] for r in records
    ]
    assert not [name for name in DatasetCatalog.list() if "region_labels" in name]


@pytest.fixture
def captions(tmp_path):
    texts = [
        "A cat on a Remote-Control.",
        "cats, a REMOTE  control and a cat!",
        "the control of a remote dog",
        "A dog; a puppy",
        "",
    ]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": [{"caption": text} for text in texts]}))
    return path


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, ["remote_control", "dog", "cat"]), (2, ["remote_control", "dog", "cat"]), (3, None)],
)
def test_categories_that_occur_in_captions(captions, count, expected):
    vocabulary = Vocabulary.parse("remote_control;dog,puppy;emu;cat;do")
    if expected is None:
        with pytest.raises(VocabularyError, match=r"in 3 captions of .* has 2: lower the count"):
            frequent_categories(vocabulary, captions, count)
    else:
        assert list(frequent_categories(vocabulary, captions, count).labels) == expected


@pytest.mark.parametrize("text", ["{", "[]", '{"annotations": [{"text": "a"}]}'])
def test_a_file_that_has_no_captions(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DatasetError, match=r"bad\.json is not in COCO's caption format"):
        frequent_categories(Vocabulary.parse("cat;dog"), tmp_path / "bad.json", 1)
    with pytest.raises(DatasetError, match=r"absent\.json cannot be read"):
        frequent_categories(Vocabulary.parse("cat;dog"), tmp_path / "absent.json", 1)
