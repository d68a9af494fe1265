"""The configs of panoptic segmentation on COCO, ADE20K and Cityscapes, and one real evaluation."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog
from PIL import Image

from densedet import model_zoo
from densedet.data import annotation_file
from densedet.data.conversion import category_entries, segment_entry
from densedet.data.segment_map import write_segment_map
from densedet.data.verification import verify
from densedet.engine.analysis import without_weights
from densedet.engine.config import load_config
from densedet.engine.train import evaluate, train
from densedet.vocabulary import Vocabulary, class_list_ids
from densedet.weights import weights_digest

PANOPTIC = "projects/panoptic_fpn/configs/"
TOWERS = {"rn50": ("RN50-quickgelu", 1024), "eva_b16": ("EVA02-B-16", 512)}
COCO = [f"coco_{tower}" for tower in TOWERS]
TRANSFER = [f"cross_dataset_{tower}" for tower in TOWERS]
CITY = "ulm_000001_000019"
# class list, annotation file, folder of the PNGs, image file, id and "file_name" of the image
SETS = {
    "coco_panoptic_train": (
        "coco_panoptic",
        "coco/annotations/panoptic_train2017.json",
        "coco/panoptic_train2017",
        "coco/train2017/1.jpg",
        1,
        "1.jpg",
    ),
    "coco_panoptic_val": (
        "coco_panoptic",
        "coco/annotations/panoptic_val2017.json",
        "coco/panoptic_val2017",
        "coco/val2017/2.jpg",
        2,
        "2.jpg",
    ),
    "ade20k_panoptic_val": (
        "ade20k_panoptic",
        "ADEChallengeData2016/ade20k_panoptic_val.json",
        "ADEChallengeData2016/ade20k_panoptic_val",
        "ADEChallengeData2016/images/validation/ADE_val_1.jpg",
        "ADE_val_1",
        "ADE_val_1.jpg",
    ),
    "cityscapes_panoptic_train": (
        "cityscapes_19",
        "cityscapes/gtFine/cityscapes_panoptic_train.json",
        "cityscapes/gtFine/cityscapes_panoptic_train",
        f"cityscapes/leftImg8bit/train/ulm/{CITY}_leftImg8bit.png",
        CITY,
        f"{CITY}_gtFine_leftImg8bit.png",
    ),
    "cityscapes_panoptic_val": (
        "cityscapes_19",
        "cityscapes/gtFine/cityscapes_panoptic_val.json",
        "cityscapes/gtFine/cityscapes_panoptic_val",
        f"cityscapes/leftImg8bit/val/ulm/{CITY}_leftImg8bit.png",
        CITY,
        f"{CITY}_gtFine_leftImg8bit.png",
    ),
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Official files of one picture a split, 96 x 64: the first thing lies in the first stuff."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    rng = np.random.default_rng(0)
    for name, json_file, maps, image_file, image_id, file_name in SETS.values():
        words, ids = Vocabulary.named(name), class_list_ids(name)
        segment_map = np.zeros((64, 96), dtype=np.uint32)
        segment_map[8:], segment_map[16:48, 24:72] = 7, 300
        category_ids = {7: ids[words.kinds.index("stuff")], 300: ids[words.kinds.index("thing")]}
        segments = [segment_entry(segment_map == i, i, c) for i, c in category_ids.items()]
        image = {"id": image_id, "file_name": file_name, "width": 96, "height": 64}
        annotation = {"image_id": image_id, "file_name": "map.png", "segments_info": segments}
        content = {
            "images": [image],
            "annotations": [annotation],
            "categories": category_entries(words, ids),
        }
        for path in (json_file, image_file):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / json_file).write_text(json.dumps(content))
        write_segment_map(tmp_path / maps / "map.png", segment_map)
        pixels = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / image_file)
    return tmp_path


def load(name):
    cfg = model_zoo.get_config(f"{PANOPTIC}{name}.py")
    without_weights(cfg)
    return cfg


def build(cfg):
    with torch.device("meta"):
        return instantiate(cfg.model)


@pytest.mark.parametrize("name", [*COCO, *TRANSFER, "zero_shot_vitb16"])
def test_there_is_nothing_else_in_the_config(name):
    parts = ["clip", "dataloader", "lr_multiplier", "model", "optimizer", "train"]
    if name == "zero_shot_vitb16":
        parts = ["clip", "dataloader", "model", "train"]
    assert sorted(model_zoo.get_config(f"{PANOPTIC}{name}.py")) == parts


@pytest.mark.parametrize("name", COCO)
def test_the_recipe_of_panoptic_fpn(name):
    """Detectron2's loss weights, combination, sizes and 1x schedule on a frozen tower."""
    tower, embed_dim = TOWERS[name.removeprefix("coco_")]
    cfg = load(name)
    assert (cfg.clip.model, cfg.clip.embed_dim) == (tower, embed_dim)
    assert cfg.train.max_iter == 90000
    schedule = instantiate(cfg.lr_multiplier)
    rates = {0: 0.001, 500: 0.5005, 1000: 1.0, 59999: 1.0, 60000: 0.1, 79999: 0.1, 80000: 0.01}
    for iteration, expected in rates.items():
        assert schedule(iteration / 90000) == pytest.approx(expected, rel=1e-6), iteration
    assert cfg.dataloader.train.total_batch_size == 16
    assert cfg.dataloader.train.dataset.filter_empty is False

    model = build(cfg)
    assert model.vocabulary == Vocabulary.named("coco_panoptic") and all(model.vocabulary.seen)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".visual." in n)
    assert model.backbone.padding_constraints["square_size"] == 0
    head = model.sem_seg_head
    assert (head.loss_weight, head.ignore_value, head.common_stride) == (0.5, 255, 4)
    assert head.in_features == ["p2", "p3", "p4", "p5"]
    assert head.p2[0].out_channels == 128 and isinstance(head.p2[0].norm, torch.nn.GroupNorm)
    thresholds = (
        model.combine_overlap_thresh,
        model.combine_stuff_area_thresh,
        model.combine_instances_score_thresh,
    )
    assert thresholds == (0.5, 4096, 0.5)
    assert model.roi_heads.mask_on and model.roi_heads.mask_head.loss_weight == 1.0


def _first(loader):
    loader.num_workers = 0
    return next(iter(instantiate(loader)))


def test_data_of_coco(root):
    dataloader = load("coco_rn50").dataloader
    instantiate(dataloader.register[0])
    dataloader.train.total_batch_size = 8
    words = Vocabulary.named("coco_panoptic")
    heights = set()
    for sample in _first(dataloader.train):
        height, width = sample["image"].shape[1:]
        assert width == height * 3 // 2
        heights.add(height)
        assert sample["instances"].gt_classes.tolist() == [0]
        stuff = words.kinds.index("stuff")
        assert sample["sem_seg"].unique().tolist() == [0, stuff, 255]
    assert len(heights) > 1 and heights <= {640, 672, 704, 736, 768, 800}
    (sample,) = _first(dataloader.test)
    assert (sample["image"].shape, sample["height"], sample["width"]) == ((3, 800, 1200), 64, 96)
    assert instantiate(dataloader.evaluator).vocabulary == words


@pytest.mark.parametrize(
    ("name", "size"), [("ade20k_panoptic", (640, 960)), ("cityscapes_panoptic", (1024, 1536))]
)
def test_data_of_the_transfer(root, name, size):
    entry = load("cross_dataset_eva_b16").dataloader.evaluators[name]
    instantiate(entry.register[0])
    (sample,) = _first(entry.test)
    assert sample["image"].shape[1:] == size and "sem_seg" not in sample
    evaluator = instantiate(entry.evaluator)
    assert instantiate(entry.vocabulary) == evaluator.vocabulary
    assert evaluator.output_dir is None  # the predictions of two data sets would lie in one folder


def test_training_on_cityscapes(root):
    dataloader = model_zoo.get_config("configs/common/data/cityscapes_panoptic.py").dataloader
    assert dataloader.train.total_batch_size == 32
    instantiate(dataloader.register[0])
    dataloader.train.total_batch_size = 8
    sizes = []
    for sample in _first(dataloader.train):
        sizes.append(sample["image"].shape[1:])
        assert sample["sem_seg"].shape == sizes[-1]
        assert set(sample["sem_seg"].unique().tolist()) <= {0, 11, 255}
        assert set(sample["instances"].gt_classes.tolist()) <= {11}
    assert np.max(sizes, axis=0).tolist() == [512, 1024]


# the tiny CLIP below the pyramid of F-ViT: strides 4 to 32 from 8
TINY = [
    "clip.model=densedet-tiny",
    "clip.pretrained=shipped",
    "clip.embed_dim=128",
    "model.embedder.templates=single",
    "model.backbone.bottom_up.bottom_up.out_features=[block0,block1,block2,block3]",
    "model.backbone.bottom_up.scales=[2.0,1.0,0.5,0.25]",
    "model.roi_heads.dense_stride=8",
    "model.roi_heads.box_head.conv_dims=[32]",
    "model.proposal_generator.post_nms_topk=[20,20]",
    "model.combine_stuff_area_thresh=1",  # the pictures are small
    "train.device=cpu",
]


def test_cross_dataset_evaluation(root, tmp_path):
    """One run over COCO, ADE20K and Cityscapes with the words of each; weights from a file."""
    cfg = load_config(f"{PANOPTIC}cross_dataset_eva_b16.py", TINY)
    torch.manual_seed(0)
    weights = instantiate(cfg.model).state_dict()
    torch.save({"model": weights}, tmp_path / "weights.pth")
    cfg.train.init_checkpoint = str(tmp_path / "weights.pth")
    cfg.train.output_dir = str(tmp_path / "out")
    entries = {"": cfg.dataloader, **cfg.dataloader.evaluators}
    for entry in entries.values():
        entry.test.num_workers = 0
        entry.test.mapper.augmentations[0].update(short_edge_length=64)

    results = evaluate(cfg)

    content = json.loads((tmp_path / "out/results.json").read_text())
    origin = content.pop("provenance")
    assert list(content) == ["panoptic_seg", "ade20k_panoptic", "cityscapes_panoptic"]
    categories = {"panoptic_seg": 133, "ade20k_panoptic": 150, "cityscapes_panoptic": 19}
    for name, count in categories.items():
        figures = content[name] if name == "panoptic_seg" else content[name]["panoptic_seg"]
        assert len([key for key in figures if key.startswith("PQ-")]) == count
        assert 0 <= figures["PQ"] <= 100
    assert results["ade20k_panoptic"].keys() == {"panoptic_seg"}
    # what COCO has not is unseen; of it only ADE20K's picture has something
    unseen = [content[name]["panoptic_seg"]["PQ_unseen"] for name in list(content)[1:]]
    assert content["panoptic_seg"]["PQ_unseen"] is None and unseen == [0, None]
    assert origin["weights"] == weights_digest(weights)
    assert origin["text"]["templates"] == cfg.model.embedder.templates
    assert "unfinished" not in origin
    coco = Vocabulary.named("coco_panoptic")
    assert origin["vocabulary"] == coco.digest()
    ade20k, cityscapes = (
        Vocabulary.named(name).seen_by(coco) for name in ("ade20k_panoptic", "cityscapes_19")
    )
    assert origin["data_sets"] == {
        "ade20k_panoptic": {"vocabulary": ade20k.digest()},
        "cityscapes_panoptic": {"vocabulary": cityscapes.digest()},
    }
    assert [c.label for c in cityscapes if c.kind == "thing" and not c.seen] == ["rider"]


def test_training_and_evaluation_decode_each_file_once(root, tmp_path, monkeypatch):
    """Also the look at the test data, and the predictions that are written."""
    reads = []
    decode = annotation_file._decode
    monkeypatch.setattr(annotation_file, "_decode", lambda c: reads.append(c) or decode(c))
    cfg = load_config(f"{PANOPTIC}coco_eva_b16.py", TINY)
    cfg.train.update(max_iter=1, eval_period=0, precision="fp32", output_dir=str(tmp_path / "out"))
    cfg.dataloader.train.update(total_batch_size=1, num_workers=0)
    cfg.dataloader.test.num_workers = 0
    for part in ("train", "test"):
        cfg.dataloader[part].mapper.augmentations[0].update(short_edge_length=64)
    cfg.dataloader.evaluator.output_dir = str(tmp_path / "predictions")

    results = train(cfg)

    assert 0 <= results["panoptic_seg"]["PQ"] <= 100
    written = json.loads((tmp_path / "predictions/predictions.json").read_text())
    truth = json.loads((root / SETS["coco_panoptic_val"][1]).read_text())
    assert [written[key] == truth[key] for key in ("images", "categories")] == [True, True]
    assert verify("coco_panoptic_train").images == 1
    assert len(reads) == 2
    path = root / SETS["coco_panoptic_val"][1]
    truth["images"][0]["width"] = 97
    path.write_text(json.dumps(truth))
    (record,) = DatasetCatalog.get("coco_panoptic_val")
    assert record["width"] == 97 and len(reads) == 3, "a file that changed is decoded again"


def test_segmentation_without_training_has_the_protocol_of_448_pixels():
    cfg = load("zero_shot_vitb16")
    model = build(cfg)
    assert (cfg.clip.model, model.window, model.window_stride) == ("ViT-B-16-quickgelu", 448, 224)
    assert (cfg.model.path, cfg.model.temperature) == ("value", 100.0)
    assert model_zoo.get_config(f"{PANOPTIC}zero_shot_vitb16.py").clip.pretrained == "openai"
    names = ["voc_20", "context_59", "ade20k_150", "cityscapes_semantic", "coco_stuff_164k"]
    assert list(cfg.dataloader.evaluators) == names
    for entry in cfg.dataloader.evaluators.values():
        (resize,) = instantiate(entry.test.mapper.augmentations)
        assert (resize.long, resize.short, resize.factors) == (2048, 448, (1.0, 1.0))
