"""The data configs build: on files of the official layout, with few records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances, PolygonMasks
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from densedet.data.shapes_world_writer import ShapesWorldRecipe, write_shapes_world
from densedet.evaluation import (
    OpenVocabularyCOCOEvaluator,
    OpenVocabularyLVISEvaluator,
    OpenVocabularyPanopticEvaluator,
    OpenVocabularySemanticEvaluator,
)
from densedet.vocabulary import Vocabulary

FOLDER = Path(__file__).parents[2] / "configs/common/data"


def _records(categories: list[int]) -> dict[str, Any]:
    """One image with one object a category id."""
    polygon = [[10, 10, 90, 10, 90, 70, 10, 70]]
    return {
        "images": [
            {
                "id": i,
                "width": 100,
                "height": 80,
                "file_name": f"{i}.jpg",
                "coco_url": f"http://images.cocodataset.org/val2017/{i}.jpg",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
            for i in categories
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": i,
                "bbox": [10, 10, 80, 60],
                "area": 4800,
                "iscrowd": 0,
                "segmentation": polygon,
            }
            for i in categories
        ],
    }


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Official files: seen and unseen classes of each benchmark, with grey images."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    coco = {"categories": [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES[:80]]}
    lvis = {
        "categories": [
            {"id": i, "name": c.label, "frequency": c.frequency}
            for i, c in enumerate(Vocabulary.named("ov_lvis"), 1)
        ]
    }
    rare = Vocabulary.named("ov_lvis").seen.index(False) + 1
    frequent = [c.frequency for c in Vocabulary.named("ov_lvis")].index("f") + 1
    files = {
        "coco/annotations/instances_train2017.json": coco | _records([1, 5]),
        "coco/annotations/instances_val2017.json": coco | _records([1, 5, 10]),
        "lvis/lvis_v1_train.json": lvis | _records([frequent, rare]),
        "lvis/lvis_v1_val.json": lvis | _records([frequent, rare]),
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("lvis"):
            for image in data["images"]:
                del image["file_name"]
        (tmp_path / name).write_text(json.dumps(data))
    for folder in ("train2017", "val2017"):
        (tmp_path / "coco" / folder).mkdir()
        for i in {1, 5, 10, frequent, rare}:
            Image.new("RGB", (100, 80), (128, 128, 128)).save(tmp_path / f"coco/{folder}/{i}.jpg")
    return tmp_path


def _load(name: str) -> DictConfig:
    dataloader = LazyConfig.load(str(FOLDER / name)).dataloader
    dataloader.train.total_batch_size = 2
    dataloader.train.num_workers = dataloader.test.num_workers = 0
    for call in dataloader.register:
        instantiate(call)
    return dataloader


@pytest.mark.parametrize(
    ("name", "size", "evaluator", "tested"),
    [
        ("ov_coco.py", 640, OpenVocabularyCOCOEvaluator, 2),
        ("ov_lvis.py", 1024, OpenVocabularyLVISEvaluator, 2),
    ],
)
def test_config_builds(
    name: str, size: int, evaluator: Callable[..., Any], tested: int, layout: Path
) -> None:
    dataloader = _load(name)
    batch = next(iter(instantiate(dataloader.train)))
    assert len(batch) == 2
    for sample in batch:
        assert len(sample["instances"]) == 1, "an image that lost its object is drawn again"
        assert max(sample["image"].shape[1:]) <= size
        assert sample["instances"].has("gt_masks") is (name == "ov_lvis.py")
    assert len({sample["image_id"] for sample in batch}) == 1, "only the seen class is trained on"
    tests = list(instantiate(dataloader.test))
    assert len(tests) == tested
    assert {max(sample["image"].shape[1:]) for (sample,) in tests} == {size}
    assert isinstance(instantiate(dataloader.evaluator), evaluator)


def test_coco(layout: Path) -> None:
    dataloader = _load("coco.py")
    dataloader.train.mapper.use_instance_mask = True
    batch = next(iter(instantiate(dataloader.train)))
    for sample in batch:
        assert sample["image"].shape == (3, 800, 1000)
        (box,) = sample["instances"].gt_boxes.tensor.tolist()
        assert box == pytest.approx([100, 100, 900, 700])
        assert isinstance(sample["instances"].gt_masks, PolygonMasks)
    tests = list(instantiate(dataloader.test))
    assert [tuple(sample["image"].shape) for (sample,) in tests] == [(3, 800, 1000)] * 3


def test_coco_is_detectron2s_coco_2017_from_checked_records(layout: Path) -> None:
    dataloader = _load("coco.py")
    for part, name in (("train", "train"), ("test", "val")):
        assert dataloader[part].dataset.names == f"coco_{name}"
        files = (
            layout / f"coco/annotations/instances_{name}2017.json",
            layout / f"coco/{name}2017",
        )
        register_coco_instances(f"plain_{name}", {}, *map(str, files))
        ours, plain = (DatasetCatalog.get(f"{kind}_{name}") for kind in ("coco", "plain"))
        for record, other in zip(ours, plain, strict=True):
            assert {key: record[key] for key in other if key != "annotations"} == {
                key: value for key, value in other.items() if key != "annotations"
            }
            for annotation, like in zip(record["annotations"], other["annotations"], strict=True):
                assert annotation == like
        official, metadata = (MetadataCatalog.get(f"{k}_{name}") for k in ("coco_2017", "coco"))
        assert metadata.thing_classes == official.thing_classes
        ids = official.thing_dataset_id_to_contiguous_id
        assert metadata.thing_dataset_id_to_contiguous_id == ids
    evaluator = instantiate(dataloader.evaluator)
    assert type(evaluator) is OpenVocabularyCOCOEvaluator
    figures = [_evaluate(e) for e in (evaluator, COCOEvaluator("plain_val"))]
    for task in ("bbox", "segm"):
        for key in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
            assert figures[0][task][key] == pytest.approx(figures[1][task][key], nan_ok=True)
        assert 0 < figures[0][task]["AP"] < 100


def _evaluate(evaluator: COCOEvaluator) -> dict[str, Any]:
    """Of one object that is found, one that is found a little beside it, and one that is not."""
    evaluator.reset()
    for image_id, index, shift in ((1, 0, 0), (5, 4, 6), (10, 3, 0)):
        mask = torch.zeros(1, 80, 100, dtype=torch.bool)
        mask[0, 10:70, 10 + shift : 90 + shift] = True
        instances = Instances((80, 100))
        instances.pred_boxes = Boxes(torch.tensor([[10.0 + shift, 10, 90 + shift, 70]]))
        instances.scores, instances.pred_classes = torch.tensor([0.5]), torch.tensor([index])
        instances.pred_masks = mask
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    found: dict[str, Any] = evaluator.evaluate()
    return found


VOC, CONTEXT = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010"
CITY = "ulm/ulm_000001_000019_leftImg8bit"
# images and label maps of training and validation without suffix, number of classes
PREPARED = {
    "ade20k_150": (
        [
            [f"ADEChallengeData2016/{folder}/{part}/a" for part in ("training", "validation")]
            for folder in ("images", "annotations_detectron2")
        ],
        150,
    ),
    "coco_stuff_164k": (
        [
            [f"coco/{folder}{part}2017/a" for part in ("train", "val")]
            for folder in ("", "stuffthingmaps_detectron2/")
        ],
        171,
    ),
    "cityscapes_semantic": (
        [
            [f"cityscapes/{folder}/{part}/{CITY}" for part in ("train", "val")]
            for folder in ("leftImg8bit", "annotations_detectron2")
        ],
        19,
    ),
    "context_59": (
        [
            [f"{CONTEXT}/JPEGImages/{part}" for part in ("train", "val")],
            [f"{CONTEXT}/annotations_detectron2/pc59_{part}/{part}" for part in ("train", "val")],
        ],
        59,
    ),
    "voc_20": (
        [
            [f"{VOC}/JPEGImages/{part}" for part in ("train", "val")],
            [f"{VOC}/annotations_detectron2/{part}/{part}" for part in ("train", "val")],
        ],
        20,
    ),
}


def _write_semantic(root: Path, name: str) -> None:
    """A picture of 100 x 80 and its label map a split, as the preparation leaves them."""
    rng = np.random.default_rng(0)
    (images, labels), classes = PREPARED[name]
    suffix = ".png" if name.startswith("cityscapes") else ".jpg"
    for image, label in zip(images, labels, strict=True):
        for path, shape in (
            (root / f"{image}{suffix}", (80, 100, 3)),
            (root / f"{label}.png", (80, 100)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, classes, shape, dtype=np.uint8)).save(path)
    lists = {"context_59": f"{CONTEXT}/ImageSets/Main", "voc_20": f"{VOC}/ImageSets/Segmentation"}
    for part in ("train", "val") if name in lists else ():
        (root / lists[name]).mkdir(parents=True, exist_ok=True)
        (root / lists[name] / f"{part}.txt").write_text(f"{part}\n")
    if name == "context_59":
        lines = (f"{i}: class{i}\n" for i in range(1, 60))
        (root / CONTEXT / "59_labels.txt").write_text("".join(lines))


@pytest.mark.parametrize("name", ["ade20k", "context_59", "cityscapes_semantic"])
def test_a_dataloader_may_stand_in_another_one(name: str) -> None:
    inner = LazyConfig.load(str(FOLDER / f"{name}.py")).dataloader
    outer = OmegaConf.create({"num_classes": 3, "crop_size": 7, "evaluators": {"inner": inner}})
    moved = OmegaConf.create({"dataloader": outer}).dataloader.evaluators.inner
    plain = LazyConfig.load(str(FOLDER / f"{name}.py"))
    for part in ("train", "test", "evaluator"):
        if part == "evaluator":
            del moved[part]["output_dir"], plain.dataloader[part]["output_dir"]
        expected = OmegaConf.to_container(plain.dataloader[part], resolve=True)
        assert OmegaConf.to_container(moved[part], resolve=True) == expected
    assert moved.test.mapper.num_classes == inner.num_classes > 3


@pytest.mark.parametrize("size", [None, 64])
def test_ade20k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    _write_semantic(tmp_path, "ade20k_150")
    config = LazyConfig.load(str(FOLDER / "ade20k.py"))
    assert config.dataloader.train.total_batch_size == 32
    dataloader = _load("ade20k.py")
    if size:
        dataloader.crop_size = size
    short = size or 512
    loader, heights = iter(instantiate(dataloader.train)), []
    for _ in range(4):
        for sample in next(loader):
            image, labels = sample["image"], sample["sem_seg"]
            assert image.shape[1:] == labels.shape and max(labels.shape) <= short
            # the short side before the crop is between half of it and twice
            assert short // 2 <= min(labels.shape)
            heights.append(labels.shape[0])
    assert min(heights) < short == max(heights)
    ((sample,),) = list(instantiate(dataloader.test))
    assert sample["image"].shape == (3, short, round(short * 100 / 80)) and "sem_seg" not in sample
    evaluator = instantiate(dataloader.evaluator)
    assert isinstance(evaluator, OpenVocabularySemanticEvaluator)
    assert evaluator.sem_seg_loading_fn.num_classes == len(evaluator.vocabulary) == 150
    assert evaluator.output_dir is None  # that of the training, where there is one


@pytest.mark.parametrize(
    ("name", "batch", "crop", "tested"),
    [
        ("coco_stuff_164k", 16, (512, 512), (512, 640)),
        ("context_59", 16, (480, 480), (480, 600)),
        ("cityscapes_semantic", 16, (512, 1024), (1024, 1280)),
    ],
)
def test_training_on_label_maps(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    batch: int,
    crop: tuple[int, int],
    tested: tuple[int, int],
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    _write_semantic(tmp_path, name)
    config = LazyConfig.load(str(FOLDER / f"{name}.py"))
    assert list(config) == ["dataloader"]
    assert config.dataloader.train.total_batch_size == batch
    dataloader = _load(f"{name}.py")
    loader, sizes = iter(instantiate(dataloader.train)), []
    for _ in range(4):
        for sample in next(loader):
            assert sample["image"].shape[1:] == sample["sem_seg"].shape
            assert sample["sem_seg"].unique().tolist()[-1] < PREPARED[name][1]
            sizes.append(sample["sem_seg"].shape)
    assert np.max(sizes, axis=0).tolist() == list(crop)
    ((sample,),) = list(instantiate(dataloader.test))
    assert sample["image"].shape == (3, *tested) and "sem_seg" not in sample
    evaluator = instantiate(dataloader.evaluator)
    assert isinstance(evaluator, OpenVocabularySemanticEvaluator)
    assert evaluator.sem_seg_loading_fn.num_classes == len(evaluator.vocabulary)
    assert len(evaluator.vocabulary) == dataloader.num_classes == PREPARED[name][1]


def test_data_sets_of_segmentation_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    config = LazyConfig.load(str(FOLDER / "zero_shot_semantic.py"))
    assert list(config) == ["dataloader"]
    entries = config.dataloader.evaluators
    assert sorted(entries) == sorted(PREPARED)
    for name, entry in entries.items():
        _write_semantic(tmp_path, name)
        instantiate(entry.register[0])
        entry.test.num_workers = 0
        ((sample,),) = list(instantiate(entry.test))
        assert sample["image"].shape == (3, 448, 560) and "sem_seg" not in sample
        evaluator = instantiate(entry.evaluator)
        assert evaluator.vocabulary.labels == instantiate(entry.vocabulary).labels
        assert evaluator.sem_seg_loading_fn.num_classes == PREPARED[name][1]
        assert entry.test.mapper.num_classes == PREPARED[name][1]


def test_shapes_world_semantic(tmp_path: Path) -> None:
    write_shapes_world(tmp_path, ShapesWorldRecipe(train=2, val=1))
    config = LazyConfig.load(str(FOLDER / "shapes_world_semantic.py"))
    assert config.dataloader.train.total_batch_size == 8
    config.dataloader.register[0].root = str(tmp_path)
    instantiate(config.dataloader.register[0])
    for sample in next(iter(instantiate(config.dataloader.train))):
        assert sample["image"].shape == (3, 160, 160)
        assert 0 <= sample["sem_seg"].min() <= sample["sem_seg"].max() < 70
    assert len(list(instantiate(config.dataloader.test))) == 1
    evaluator = instantiate(config.dataloader.evaluator)
    assert evaluator.sem_seg_loading_fn.num_classes == len(evaluator.vocabulary) == 70


def test_shapes_world_panoptic(tmp_path: Path) -> None:
    write_shapes_world(tmp_path, ShapesWorldRecipe(train=2, val=1))
    dataloader = LazyConfig.load(str(FOLDER / "shapes_world_panoptic.py")).dataloader
    dataloader.register[0].root = str(tmp_path)
    instantiate(dataloader.register[0])
    words = Vocabulary.named("shapes_world_kind")
    unseen = [i for i, seen in enumerate(words.seen) if not seen]
    for sample in next(iter(instantiate(dataloader.train))):
        labels, instances = sample["sem_seg"], sample["instances"]
        assert labels.shape == (160, 160) and not np.isin(labels.numpy(), unseen).any()
        assert all(words.kinds[k] == "thing" for k in instances.gt_classes.tolist())
        for mask, label in zip(instances.gt_masks.tensor, instances.gt_classes, strict=True):
            assert (labels[mask] == label).all()
    ((sample,),) = list(instantiate(dataloader.test))
    assert sample["image_id"] == 1 and "sem_seg" not in sample
    evaluator = instantiate(dataloader.evaluator)
    assert isinstance(evaluator, OpenVocabularyPanopticEvaluator)
    assert evaluator.vocabulary == instantiate(dataloader.test.mapper).vocabulary == words


def test_the_size_is_set_in_one_place(layout: Path) -> None:
    dataloader = _load("ov_coco.py")
    dataloader.image_size = 64
    (sample,) = next(iter(instantiate(dataloader.test)))
    assert sample["image"].shape == (3, 51, 64)
    assert max(next(iter(instantiate(dataloader.train)))[0]["image"].shape) <= 64


def test_loading_one_config_leaves_the_other_alone() -> None:
    LazyConfig.load(str(FOLDER / "ov_lvis.py"))
    dataloader = LazyConfig.load(str(FOLDER / "ov_coco.py")).dataloader
    assert dataloader.image_size == 640
    assert dataloader.train.dataset.names == "ov_coco_train_seen"
