"""Every config of the project is built; large ones on the meta device."""

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from densedet import model_zoo
from densedet.clip import ClipVisual
from densedet.modeling.meta_arch import OpenVocabularyRCNN

CONFIGS = model_zoo.list()


def without_weights(node: object) -> None:
    """Set every ``pretrained`` below a config node to None: nothing is downloaded here."""
    if isinstance(node, DictConfig):
        for key in list(node):
            if key == "pretrained":
                node[key] = None
            elif not OmegaConf.is_interpolation(node, key):
                without_weights(node[key])


@pytest.fixture(params=CONFIGS)
def config(request):
    cfg = model_zoo.get_config(request.param)
    without_weights(cfg)
    return cfg


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
    config.optimizer.params.model = model
    optimizer = instantiate(config.optimizer)
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}
    instantiate(config.lr_multiplier)
    assert config.train.output_dir.startswith("output/")


def test_levels_of_backbone_rpn_and_heads_agree(config):
    with torch.device("meta"):
        model = instantiate(config.model)
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
        assert ("vlm" in shapes) is (heads.box_predictor.ensemble is not None)
