"""Every config of the project is built; large ones on the meta device."""

import copy
import functools

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from densedet import model_zoo
from densedet.clip import ClipVisual, unlock
from densedet.engine.analysis import without_weights
from densedet.modeling.meta_arch import (
    OpenVocabularyPanopticFPN,
    OpenVocabularyRCNN,
    RegionCLIP,
    ZeroShotSegmentor,
)
from densedet.vocabulary import Vocabulary

CONFIGS = model_zoo.list()
CLIPSELF = "projects/clipself/configs/"
PANOPTIC = "projects/panoptic_fpn/configs/"
GUIDED = tuple(f"projects/{name}/" for name in ("denseclip", "icpc", "language_bridge"))


def has_roi_heads(name):
    if name.startswith(GUIDED):
        return "mask_rcnn" in name
    if name.startswith(PANOPTIC):
        return "zero_shot" not in name
    return not name.startswith(CLIPSELF) or "detector" in name


read = functools.cache(model_zoo.get_config)


def load(name):
    cfg = copy.deepcopy(read(name))
    without_weights(cfg)
    if "label_vocabulary" in cfg:  # the file of pseudo-labels is made by the user
        cfg.label_vocabulary = L(Vocabulary.parse)(text="cat,kitten;dog")
    if "custom" in cfg and "vocabulary" in cfg.model:  # and so is a data set of his own
        cfg.model.vocabulary = L(Vocabulary.parse)(text="cat,kitten;dog")
    return cfg


@pytest.fixture(params=CONFIGS)
def config(request):
    return load(request.param)


@pytest.fixture(params=[name for name in CONFIGS if has_roi_heads(name)])
def detector(request):
    return load(request.param)


def test_there_are_the_published_rows():
    names = {name.removeprefix("projects/fvit/configs/").removesuffix(".py") for name in CONFIGS}
    assert names >= {
        "ov_coco_eva_b16",
        "ov_coco_eva_l14",
        "ov_lvis_eva_b16",
        "ov_lvis_eva_l14",
        "ov_coco_rn50",
        "quickstart",
        "quickstart_closed_set",
    }


def test_model_optimizer_and_schedule_can_be_built(config):
    with torch.device("meta"):
        model = instantiate(config.model)
    assert config.train.output_dir.startswith("output/")
    if "optimizer" not in config:
        assert isinstance(model, ZeroShotSegmentor)
        assert not [p for p in model.parameters() if p.requires_grad]
        return
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    instantiate(config.lr_multiplier)


# file, blocks, side of the student, alpha, iterations, data
RELEASED = [
    ("eva02_b16_coco_patches", 12, 1024, 0.7, 44358, "clipself_coco_train"),
    ("eva02_b16_coco_proposals", 12, 1024, 0.7, 44358, "clipself_coco_proposals"),
    ("eva02_b16_coco_regionclip", 12, 1024, 0.7, 44358, "clipself_coco_regionclip"),
    ("eva02_l14_coco_patches", 24, 896, 0.95, 44358, "clipself_coco_train"),
    ("eva02_l14_coco_proposals", 24, 896, 0.95, 44358, "clipself_coco_proposals"),
    ("eva02_l14_coco_regionclip", 24, 896, 0.95, 44358, "clipself_coco_regionclip"),
    ("eva02_b16_lvis_patches", 12, 1024, 0.7, 37566, "clipself_lvis_train"),
    ("eva02_l14_lvis_patches", 24, 896, 0.95, 37566, "clipself_lvis_train"),
]


@pytest.mark.parametrize(
    ("name", "blocks", "size", "alpha", "iterations", "data"), RELEASED, ids=lambda v: str(v)
)
def test_the_released_recipes_of_clipself(name, blocks, size, alpha, iterations, data):
    cfg = load(f"{CLIPSELF}{name}.py")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert model.student.depth == blocks
    assert len(unlock(model.student, blocks)) == len(
        [p for p in model.student.parameters() if p.requires_grad]
    )
    assert model.student_size == cfg.dataloader.test.mapper.size == size
    assert model.crop_size == model.student.image_size[0] == {1024: 224, 896: 336}[size]
    assert cfg.dataloader.test.mapper.stride == model.student.stride
    assert cfg.train.hooks[0].alpha == alpha
    assert cfg.train.max_iter == iterations
    assert cfg.dataloader.train.dataset.names == data
    assert cfg.dataloader.train.total_batch_size == 16
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-5, 0.1)
    assert cfg.optimizer.params.weight_decay_1d == 0.0
    assert (cfg.train.precision, cfg.train.clip_grad) == ("fp16", None)
    regions = instantiate(cfg.dataloader.train.mapper.regions)
    assert regions.max_regions == 20
    assert isinstance(model, RegionCLIP) is ("regionclip" in name)
    if "patches" in name:
        assert len(regions.splits) == 24
    else:
        assert regions.enlarge == (1.5 if "proposals" in name else 1.0)
        assert regions.shuffle is ("proposals" in name)


# folder and beginning of a config -> learning rate and the images a step that it is for
RATES = {
    "projects/clipself/configs/": (1e-5, 16),
    "projects/fvit/configs/": (1e-4, 64),
    "projects/panoptic_fpn/configs/c": (1e-4, 64),  # heads and optimizer of F-ViT
    "projects/denseclip/configs/ade20k_": (1e-4, 32),
    "projects/denseclip/configs/coco_retinanet_": (1e-4, 16),
    "projects/denseclip/configs/coco_mask_rcnn_": (2e-4, 16),
    "projects/icpc/configs/": (1e-4, 16),
    "projects/language_bridge/configs/": (1e-4, 32),
}
# recipes of this project on the tiny CLIP; and each process of the released CLIPSelf was by itself
OTHER_RATES = ("quickstart", "custom_tiny", "unsynchronised", "zero_shot")


@pytest.mark.parametrize(
    "name", [name for name in CONFIGS if not any(part in name for part in OTHER_RATES)]
)
def test_the_learning_rate_is_for_the_images_a_step(name):
    (rate, images), *others = [RATES[start] for start in RATES if name.startswith(start)]
    assert not others
    cfg = read(name)
    expected = rate * cfg.dataloader.train.total_batch_size / images
    assert cfg.optimizer.lr == pytest.approx(expected, rel=1e-9)


def test_levels_of_backbone_rpn_and_heads_agree(detector):
    with torch.device("meta"):
        model = instantiate(detector.model)
    shapes = model.backbone.output_shape()
    generator = model.proposal_generator
    strides = [shapes[name].stride for name in generator.in_features]
    assert list(generator.anchor_generator.strides) == strides
    heads = model.roi_heads
    scales = [pooler.spatial_scale for pooler in heads.box_pooler.level_poolers]
    assert scales == [1 / shapes[name].stride for name in heads.box_in_features]
    if heads.mask_on:
        scales = [pooler.spatial_scale for pooler in heads.mask_pooler.level_poolers]
        assert scales == [1 / shapes[name].stride for name in heads.mask_in_features]
    if isinstance(model, OpenVocabularyRCNN):
        tower = next(m for m in model.modules() if isinstance(m, ClipVisual))
        assert heads.dense_stride == tower.stride
        assert heads.box_predictor.classifier.embed_dim == tower.embed_dim
        ensembles = (heads.box_predictor.ensemble, getattr(model, "mask_ensemble", None))
        assert ("vlm" in shapes) is any(e is not None for e in ensembles)
    if isinstance(model, OpenVocabularyPanopticFPN):
        head = model.sem_seg_head
        names = [name for name in heads.mask_in_features if name in head.in_features]
        assert names == head.in_features
        assert head.common_stride == shapes[head.in_features[0]].stride
        assert head.classifier.embed_dim == heads.box_predictor.classifier.embed_dim
        mapper = instantiate(detector.dataloader.train.mapper)
        assert mapper.vocabulary == model.vocabulary
        assert mapper.ignore_value == head.ignore_value
