"""In every config, the features of an image are those that it has alone, whatever its batch."""

from functools import partial

import open_clip
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from open_clip.factory import _MODEL_CONFIGS
from timm.models._registry import _model_entrypoints
from torch.nn.modules.batchnorm import _BatchNorm

from densedet import model_zoo
from densedet.engine.analysis import without_weights
from densedet.modeling.backbone import AlignedResNet, ClipBackbone, TimmBackbone
from densedet.modeling.image_sizes import hand_on, sizes_of
from densedet.modeling.meta_arch import CLIPSelf, Segmentor, ZeroShotSegmentor
from densedet.vocabulary import Vocabulary

CONFIGS = model_zoo.list()
# trunks of convolutions, all of which train: no ViT
CONVOLUTIONS = [
    name
    for name in CONFIGS
    if name.startswith(("projects/denseclip", "projects/icpc", "projects/language_bridge"))
    and "vitb16" not in name
    and ("quickstart" not in name or "bridge" in name)
    and "tiny_clip" not in name
]
WIDTH = 32
# of squares and crops: for patches of 14 pixels, and for all others
SIDES = {True: 112, False: 128}
# within the square: two of one shape, and one of a single row
SIZES = [(112, 70), (33, 90), (112, 70), (1, 112)]


@pytest.fixture
def narrow_towers(monkeypatch):
    """The architectures of the configs as they are, but narrow, with a text tower of one block."""
    for name in ("EVA02-B-16", "EVA02-L-14-336", "ViT-B-16-quickgelu", "RN50-quickgelu"):
        config = open_clip.get_model_config(name)
        config["text_cfg"].update(width=WIDTH, heads=2, layers=1)
        trunk = config["vision_cfg"].get("timm_model_name")
        if trunk:
            narrow = partial(_model_entrypoints[trunk], embed_dim=WIDTH, num_heads=2)
            monkeypatch.setitem(_model_entrypoints, trunk, narrow)
        else:
            config["vision_cfg"].update(width=WIDTH, head_width=16)
        monkeypatch.setitem(_MODEL_CONFIGS, name, config)


def build(name):
    cfg = model_zoo.get_config(name)
    without_weights(cfg)
    words = L(Vocabulary.parse)(text="cat,kitten;dog")
    if "label_vocabulary" in cfg:  # files that the user makes
        cfg.label_vocabulary = words
    if "zero_shot" in name or ("custom" in cfg and "vocabulary" in cfg.model):
        cfg.model.vocabulary = words
    if "embedder" in cfg.model:
        cfg.model.embedder.templates = "single"
    for key in ("image_size", "crop_size"):
        if key in cfg.dataloader:
            cfg.dataloader[key] = SIDES["L-14" in cfg.clip.model]
    if cfg.model.get("window_stride"):
        cfg.model.window_stride = 64
    if "icpc" in name and "vitb16" in name:
        guidance = cfg.model.backbone.bottom_up.guidance
        guidance.level_channels = dict.fromkeys(guidance.level_channels, WIDTH)
        guidance.condition.width = WIDTH
    torch.manual_seed(0)
    return instantiate(cfg.model)


def records():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(256, (3, *s), generator=generator, dtype=torch.uint8) for s in SIZES]
    return [{"image": image} for image in images]


def features(model, batch):
    """For each image its features by name, without the padding of the batch."""
    if isinstance(model, ZeroShotSegmentor):
        return [{"logits": result["sem_seg"].full()} for result in model(batch)]
    if isinstance(model, CLIPSelf):
        found = model.student(model._student_images(batch), model.student.tap_names)
        return rows({**found.taps, "dense": found.dense, "pooled": found.pooled[..., None, None]})
    if isinstance(model, Segmentor):
        images = model._batch([model._normalise(record["image"]) for record in batch], 0.0)
        return rows(
            {"images": images} if model.training else {"images": images, **model.backbone(images)}
        )
    images = model.preprocess_image(batch).tensor
    if not any(isinstance(m, _BatchNorm) and m.training for m in model.backbone.modules()):
        return rows(model.backbone(images))
    tower = next(m for m in model.modules() if isinstance(m, ClipBackbone))
    found = []
    handle = tower.register_forward_hook(lambda *args: found.append(args[-1]))
    model.backbone(images)
    handle.remove()
    strides = {name: shape.stride for name, shape in tower.output_shape().items()}
    joined = hand_on(images, found[-1], {name: strides[name] for name in found[-1]})
    return rows(joined)


def rows(maps):
    return [
        {n: m[i, :, : sizes_of(m)[i][0], : sizes_of(m)[i][1]] for n, m in maps.items()}
        for i in range(len(next(iter(maps.values()))))
    ]


def largest_difference(model):
    """Between an image alone and in a batch, over all features: relative, in the L2 norm."""
    batch = records()
    with torch.no_grad():
        together = features(model, batch)
        alone = [features(model, [record])[0] for record in batch]
    differences = []
    for one, other in zip(together, alone, strict=True):
        assert {n: f.shape for n, f in one.items()} == {n: f.shape for n, f in other.items()}
        assert all(f.isfinite().all() and f.any() for f in other.values())
        differences += [
            ((one[n].float() - f.float()).norm() / f.float().norm()).item()
            for n, f in other.items()
        ]
    return max(differences)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in CONVOLUTIONS])
def test_an_image_has_the_features_that_it_has_alone(name, narrow_towers):
    """Those that the heads see; in training, where a batch norm mixes the images of a batch by its
    nature, those of the frozen tower, and of a tower that trains what it is shown.
    """
    model = build(name)
    for training in (False, True):
        if training and isinstance(model, ZeroShotSegmentor):
            continue
        model.train(training)
        assert largest_difference(model) < 1e-5, training
        with torch.autocast("cpu", torch.bfloat16):
            assert largest_difference(model) < 0.02, training


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_other_configs_have_no_vit(name):
    trunk = model_zoo.get_config(name).model.backbone.bottom_up
    assert trunk.get("trunk", trunk)._target_ in (AlignedResNet, TimmBackbone)
