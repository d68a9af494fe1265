"""The configs for a data set of one's own, on a file with three categories."""

import json

import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog

from densedet.data import RegionMapper
from densedet.engine.analysis import without_weights
from densedet.engine.config import load_config
from densedet.errors import DatasetError
from densedet.modeling.meta_arch import CLIPSelf, OpenVocabularyRCNN
from densedet.vocabulary import Vocabulary

NAMES = {31: "cup", 4: "plate", 900: "spoon"}


@pytest.fixture
def root(tmp_path):
    """Ids in any order; boxes alone."""
    data = {
        "images": [{"id": 7, "width": 100, "height": 80, "file_name": "a.jpg"}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": i, "bbox": [10, 10, 20, 20]} for i in NAMES
        ],
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
    }
    for part in ("train", "val"):
        (tmp_path / f"{part}.json").write_text(json.dumps(data))
    return tmp_path


def load(config, root, *overrides):
    cfg = load_config(config, [f"custom.root='{root}'", *overrides])
    without_weights(cfg)
    for call in cfg.dataloader.register:
        instantiate(call)
    return cfg


@pytest.mark.parametrize(("name", "size"), [("custom", 640), ("custom_tiny", 160)])
def test_the_detectors_take_the_categories_of_the_file(name, size, root):
    cfg = load(f"projects/fvit/configs/{name}.py", root)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert isinstance(model, OpenVocabularyRCNN) and not model.roi_heads.mask_on
    assert model.vocabulary.labels == ("plate", "cup", "spoon")  # by id
    assert model.vocabulary == MetadataCatalog.get("custom_val").vocabulary
    assert cfg.dataloader.image_size == size
    (record,) = DatasetCatalog.get("custom_train")
    assert [a["category_id"] for a in record["annotations"]] == [1, 0, 2]
    assert record["file_name"] == str(root / "train" / "a.jpg")
    assert DatasetCatalog.get("custom_val")[0]["file_name"] == str(root / "val" / "a.jpg")


@pytest.mark.parametrize("name", ["custom", "custom_tiny"])
def test_clipself_needs_pictures_alone(name, root):
    cfg = load(f"projects/clipself/configs/{name}.py", root)
    with torch.device("meta"):
        assert isinstance(instantiate(cfg.model), CLIPSelf)
    assert "test" not in cfg.dataloader and "evaluator" not in cfg.dataloader
    assert cfg.dataloader.train.dataset.names == "custom_train"
    assert cfg.dataloader.train.mapper._target_ is RegionMapper


def test_both_steps_meet_in_one_file(root):
    for name in ("custom", "custom_tiny"):
        distil = load_config(f"projects/clipself/configs/{name}.py", [f"custom.root='{root}'"])
        detector = load_config(f"projects/fvit/configs/{name}.py", [f"custom.root='{root}'"])
        written = f"{distil.train.output_dir}/{distil.train.hooks[0].export.file_name}"
        visual = detector.model.backbone.bottom_up.bottom_up.visual
        assert visual.pretrained == detector.model.embedder.pretrained == written
        assert (visual.model, detector.model.embedder.model) == (distil.clip.model,) * 2


def test_a_vocabulary_file_with_an_unseen_category(root):
    words = root / "words.json"
    Vocabulary.from_coco(root / "train.json").with_unseen(["cup"]).save(words)
    cfg = load("projects/fvit/configs/custom_tiny.py", root, f"custom.vocabulary='{words}'")
    assert instantiate(cfg.model.vocabulary).seen == (True, False, True)
    (train,), (val,) = map(DatasetCatalog.get, ("custom_train", "custom_val"))
    assert [a["category_id"] for a in train["annotations"]] == [0, 2]
    assert [a["category_id"] for a in val["annotations"]] == [1, 0, 2]


def test_a_category_that_the_vocabulary_lacks_is_named(root):
    cfg = load_config("projects/fvit/configs/custom_tiny.py", [f"custom.root='{root}'"])
    cfg.custom.val_json = str(root / "more.json")
    data = json.loads((root / "val.json").read_text())
    data["categories"][0]["name"] = "mug"
    (root / "more.json").write_text(json.dumps(data))
    for call in cfg.dataloader.register:
        instantiate(call)
    with pytest.raises(DatasetError, match=r"more\.json: annotation 31 .* category 'mug'"):
        DatasetCatalog.get("custom_val")
