"""The configs of DenseCLIP, ICPC and the language bridge, on the meta device."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from densedet import model_zoo
from densedet.engine.analysis import analyze, without_weights
from densedet.modeling.backbone import find_guided
from densedet.modeling.guidance import BoxScoreLoss, PixelScoreLoss
from densedet.modeling.retinanet import ReassigningMatcher

DENSECLIP = "projects/denseclip/configs/"
ICPC = "projects/icpc/configs/"
BRIDGE = "projects/language_bridge/configs/"
LIGHTWEIGHT = {  # channels of the last level
    "resnet18": 512,
    "mobilenetv2": 320,
    "efficientformer_l1": 448,
    "poolformer_s12": 512,
    "resnet50": 2048,
}
KINDS = ("semantic_fpn", "denseclip", "bridge")


def load(name):
    cfg = model_zoo.get_config(name)
    without_weights(cfg)
    return cfg


def build(cfg):
    with torch.device("meta"):
        return instantiate(cfg.model)


# file, crop, stride of the windows, drop path, level of the scores
ADE20K = [
    ("rn50_clip", 512, 341, None, None),
    ("rn50_denseclip", 512, 341, None, "res5"),
    ("rn101_clip", 512, 341, None, None),
    ("rn101_denseclip", 512, 341, None, "res5"),
    ("vitb16_clip", 640, 426, 0.0, None),
    ("vitb16_denseclip", 640, 426, 0.1, "res4"),
]
# file, learning rate
COCO = [
    ("retinanet_rn50_clip", 1e-4),
    ("retinanet_rn50_denseclip", 1e-4),
    ("retinanet_rn101_clip", 1e-4),
    ("retinanet_rn101_denseclip", 1e-4),
    ("mask_rcnn_rn50_clip", 2e-4),
    ("mask_rcnn_rn50_denseclip", 2e-4),
    ("mask_rcnn_rn101_clip", 2e-4),
    ("mask_rcnn_rn101_denseclip", 2e-4),
]
TOWERS = {  # CLIP, embedding size, cells of a side of the position table for ADE20K
    "rn50": ("RN50-quickgelu", 1024, 16),
    "rn101": ("RN101-quickgelu", 512, 16),
    "vitb16": ("ViT-B-16-quickgelu", 512, 40),
}


def check_tower(cfg, name, grid=None):
    """The right CLIP with OpenAI's weights."""
    tower = next(tower for tower in TOWERS if f"{tower}_" in name)
    model, embed_dim, native = TOWERS[tower]
    assert (cfg.clip.model, cfg.clip.embed_dim, cfg.clip.grid) == (model, embed_dim, grid or native)


@pytest.mark.parametrize(("name", "crop", "stride", "drop_path", "level"), ADE20K)
def test_the_published_recipes_of_ade20k(name, crop, stride, drop_path, level):
    """DenseCLIP, arXiv 2112.01518, and the configs of its repository."""
    assert model_zoo.get_config(f"{DENSECLIP}ade20k_{name}.py").clip.pretrained == "openai"
    cfg = load(f"{DENSECLIP}ade20k_{name}.py")
    check_tower(cfg, name)
    assert (cfg.train.max_iter, cfg.train.eval_period) == (80000, 8000)
    assert (cfg.train.precision, cfg.train.clip_grad) == ("fp32", None)
    assert cfg.train.sync_batch_norm is True
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-4, 1e-4)
    schedule = instantiate(cfg.lr_multiplier)
    assert (schedule.max_iter, schedule.power, schedule.floor) == (80000, 0.9, 1e-6)
    assert (schedule.warmup_iters, schedule.warmup_factor) == (1500, 1e-6)

    train, test = cfg.dataloader.train, cfg.dataloader.test
    assert (train.total_batch_size, train.dataset.names) == (32, "ade20k_150_train")
    resize, cut, flip, _distortion = instantiate(train.mapper.augmentations)
    assert (resize.long, resize.short, resize.factors) == (2048, crop, (0.5, 2.0))
    assert list(cut.crop_aug.crop_size) == [crop, crop] and cut.single_category_max_area == 0.75
    assert flip.prob == 0.5
    (resize,) = instantiate(test.mapper.augmentations)
    assert (resize.long, resize.short, resize.factors) == (2048, crop, (1.0, 1.0))

    model = build(cfg)
    assert (model.window, model.window_stride) == (crop, stride)
    assert model.sem_seg_head.dropout.p == 0.1 and len(model.vocabulary) == 150
    assert model.vocabulary.synonyms[44] == "chest of drawers"
    assert (
        cfg.model.backbone.bottom_up.get("trunk", cfg.model.backbone.bottom_up).get("drop_path")
        == drop_path
    )
    guided = find_guided(model.backbone)
    if level is None:
        assert guided is None
        return
    guidance = guided.guidance
    assert (guidance.fused_level, guidance.fuse_scaled) == (level, False)
    assert isinstance(guidance.auxiliary, PixelScoreLoss) and guidance.auxiliary.weight == 0.4
    check_guidance(guidance)


def check_guidance(guidance):
    assert (guidance.temperature, guidance.prompting) == (0.07, "post")
    assert guidance.text.contexts.shape == (1, 8, 512) and guidance.text.class_tokens == 5
    assert len(guidance.decoder.layers) == 3 and guidance.gamma.shape == (guidance.embed_dim,)


@pytest.mark.parametrize(("name", "lr"), COCO)
def test_the_published_recipes_of_coco(name, lr):
    """12 epochs; DenseCLIP, arXiv 2112.01518, and the configs of its repository."""
    cfg = load(f"{DENSECLIP}coco_{name}.py")
    check_tower(cfg, name, grid=42)
    assert cfg.train.max_iter == 87960 and cfg.train.precision == "fp32"
    assert cfg.train.clip_grad == {"max_norm": 0.1, "norm_type": 2.0}
    assert cfg.train.sync_batch_norm is True
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (lr, 1e-4)
    schedule = instantiate(cfg.lr_multiplier)
    rates = {0: 0.001, 250: 0.5005, 500: 1.0, 58639: 1.0, 58640: 0.1, 80629: 0.1, 80630: 0.01}
    for iteration, expected in rates.items():
        assert schedule(iteration / 87960) == pytest.approx(expected, rel=1e-6), iteration
    train, test = cfg.dataloader.train, cfg.dataloader.test
    assert (train.total_batch_size, train.dataset.names) == (16, "coco_train")
    for resize in (train.mapper.augmentations[0], test.mapper.augmentations[0]):
        assert resize.max_size == 1333
    assert train.mapper.augmentations[0].short_edge_length == [800]
    assert train.mapper.use_instance_mask is ("mask_rcnn" in name)

    model = build(cfg)
    assert model.input_format == "RGB"
    guided = find_guided(model.backbone)
    assert (guided is not None) is name.endswith("denseclip")
    if guided is not None:
        guidance = guided.guidance
        assert (guidance.fused_level, guidance.fuse_scaled) == ("res5", True)
        assert isinstance(guidance.auxiliary, BoxScoreLoss) and guidance.auxiliary.weight == 1.0
        assert len(guidance.vocabulary) == 80
        check_guidance(guidance)


ROWS = [f"ade20k_{row[0]}" for row in ADE20K] + [f"coco_{row[0]}" for row in COCO]
GUIDED = [name for name in ROWS if name.endswith("denseclip")]


@pytest.mark.parametrize("name", [*ROWS, *(f"{name}_released" for name in GUIDED)])
def test_rates_and_decays_of_denseclip(name):
    """The trunk at a tenth, the norms of the decoder's layers without decay, text not at all."""
    cfg = load(f"{DENSECLIP}{name}.py")
    model = build(cfg)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    options = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    lr, undecayed = cfg.optimizer.lr, 0
    prefix = "backbone.bottom_up." + ("trunk." if "denseclip" in name else "")
    for parameter_name, parameter in model.named_parameters():
        expected = (lr, 1e-4)
        if parameter_name.startswith(prefix):
            expected = (0.1 * lr, 1e-4)
        elif ".text.encoder." in parameter_name:
            expected = (0.0, 1e-4) if name.endswith("released") else None
        elif ".decoder.layers." in parameter_name and ".norm" in parameter_name:
            expected, undecayed = (lr, 0.0), undecayed + 1
        found = options.get(id(parameter))
        assert found == (expected and pytest.approx(expected)), parameter_name
        assert parameter.requires_grad is (expected is not None)
    assert undecayed == (18 if "denseclip" in name else 0)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("name", GUIDED)
def test_switches_of_the_released_models(name, released):
    """Ours by default; with ``_released`` what the published code does."""
    model = build(load(f"{DENSECLIP}{name}{'_released' * released}.py"))
    guided = find_guided(model.backbone)
    visual, guidance = guided.trunk.visual, guided.guidance
    assert guidance.text.frozen is not released
    detector = name.startswith("coco")
    assert visual.positions == ("crop" if released and detector else "bilinear")
    if "vitb16" in name:
        assert visual.double_class_embedding is released
    if not detector:
        means = (guidance.auxiliary.mean, model.sem_seg_head.mean)
        assert means == (("all",) * 2 if released else ("valid",) * 2)
    if "retinanet" in name:
        assert isinstance(model.anchor_matcher, ReassigningMatcher) is released
        assert model.normalizer == ("batch" if released else "ema")
        assert model.backbone.top_block.relu is False


@pytest.mark.parametrize("name", ROWS)
def test_levels_of_backbone_and_dense_heads_agree(name):
    model = build(load(f"{DENSECLIP}{name}.py"))
    shapes = model.backbone.output_shape()
    if name.startswith("ade20k"):
        names = model.sem_seg_head.in_features
        assert [shapes[level].stride for level in names] == [4, 8, 16, 32]
    elif "retinanet" in name:
        strides = [shapes[level].stride for level in model.head_in_features]
        assert list(model.anchor_generator.strides) == strides == [8, 16, 32, 64, 128]
    guided = find_guided(model.backbone)
    if guided is not None:
        trunk, classes = guided.trunk.output_shape(), len(guided.guidance.vocabulary)
        level = guided.guidance.fused_level
        assert guided.output_shape()[level].channels == trunk[level].channels + classes
        assert trunk[level].stride == guided.trunk.visual.stride


# data: training set, classes, ignored label, iterations
STUFF = {
    "ade20k": ("ade20k_150_train", 150, 255, 80000),
    "coco_stuff10k": ("coco_2017_train_stuff_10k_sem_seg", 171, 255, 80000),
    "ade20k_full": ("ade20k_full_sem_seg_train", 847, 65535, 160000),
}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("data", STUFF)
def test_the_recipes_of_icpc(data, tower):
    """The same but for data, classes and labels; whatever reads labels agrees on the ignored."""
    cfg = load(f"{ICPC}{data}_{tower}_icpc.py")
    check_tower(cfg, f"{tower}_icpc")
    names, classes, ignored, iterations = STUFF[data]
    train, test = cfg.dataloader.train, cfg.dataloader.test
    assert (train.total_batch_size, train.dataset.names) == (16, names)
    assert cfg.train.max_iter == iterations == instantiate(cfg.lr_multiplier).max_iter
    assert cfg.train.clip_grad == {"max_norm": 1.0, "norm_type": 2.0}
    crop = {"vitb16": 640}.get(tower, 512)
    assert cfg.dataloader.crop_size == crop == build(cfg).window
    assert train.mapper.augmentations[1].ignored_category == ignored
    for reader in (train.mapper, test.mapper, cfg.dataloader.evaluator.sem_seg_loading_fn):
        assert (reader.num_classes, reader.get("ignore_value", 255)) == (classes, ignored)

    model = build(cfg)
    guidance = find_guided(model.backbone).guidance
    assert model.sem_seg_head.ignore_value == guidance.auxiliary.ignore_value == ignored
    assert len(model.vocabulary) == classes
    assert (guidance.condition.mode, guidance.contrast.mode) == ("add", "t2p+p2p")
    assert guidance.decoder is None and guidance.contrast_start_iter == 5000
    assert guidance.levels == ["res3", "res4", "res5"]
    trunk = find_guided(model.backbone).trunk
    assert trunk.output_shape()[guidance.dense_level].stride == trunk.visual.stride
    assert guidance.text.encoder.checkpointing is (data == "ade20k_full")


PREFIX = "model.backbone.bottom_up.guidance."
# what the README lists: one line of overrides to the number of parameters that it adds
ABLATION = {
    "condition.mode=static": -(1024 * 64 + 64 + 64 * 512 + 512),
    "condition.mode=concat text.class_tokens=6": 512,  # one position of the text tower more
    "contrast=null": 0,
    "contrast.mode=t2p": 0,
    "contrast.mode=p2p": 0,
    "contrast.mode=weighted_p2t": 0,
    "contrast.weight=0.5": 0,
    "contrast.temperature=0.05": 0,
    "fuse=mean": None,
    "levels=[res5]": None,
    "levels=[res4,res5]": None,
    "levels=[res2,res3,res4,res5]": 257 * 1024 + 150 * 256,  # alignment, lateral of the FPN
    "text.num_contexts=16": 2 * 8 * 512,  # contexts and positions
    "condition.mode=query": None,
    "condition.detach=True": 0,
}


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("row", ABLATION)
def test_the_rows_of_the_ablation_are_one_line(row):
    cfg = load(f"{ICPC}ade20k_rn50_icpc.py")
    whole = build(cfg)
    changed = LazyConfig.apply_overrides(cfg, [PREFIX + word for word in row.split()])
    model = build(changed)
    if ABLATION[row] is not None:
        assert parameters(model) - parameters(whole) == ABLATION[row]
    guidance = find_guided(model.backbone).guidance
    added = sum(guidance.extra_channels.values())
    assert added == 150 * (1 if row == "fuse=mean" else len(guidance.levels))


def test_the_decoder_after_the_tower_is_one_line_too():
    cfg = load(f"{ICPC}ade20k_rn50_icpc.py")
    node = "{_target_: densedet.modeling.guidance.ContextDecoder, embed_dim: 1024, layers: 3}"
    line = f"{PREFIX}decoder={node}"
    guidance = find_guided(build(LazyConfig.apply_overrides(cfg, [line])).backbone).guidance
    assert len(guidance.decoder.layers) == 3 and guidance.gamma.shape == (1024,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LIGHTWEIGHT)
def test_the_lightweight_rows(name, kind):
    """Three systems on the same backbone, decoder and recipe."""
    path = f"{BRIDGE}ade20k_{name}_{kind}.py"
    assert model_zoo.get_config(path).clip.pretrained == "openai"
    cfg = load(path)
    assert (cfg.train.max_iter, cfg.dataloader.train.total_batch_size) == (80000, 32)
    model = build(cfg)
    assert model.window is None
    assert model.sem_seg_head.p2[0].out_channels == 128
    guided = find_guided(model.backbone)
    bottom_up = model.backbone.bottom_up
    trunk = bottom_up if guided is None else guided.trunk
    assert trunk.output_shape()["res5"].channels == LIGHTWEIGHT[name]
    assert (trunk.embed_dim is not None) is (kind == "denseclip")
    extra = {"semantic_fpn": 0, "denseclip": 150, "bridge": 256 + 150}[kind]
    assert bottom_up.output_shape()["res5"].channels == LIGHTWEIGHT[name] + extra
    cfg.optimizer.params.model = model
    rates = {group["lr"] for group in instantiate(cfg.optimizer).param_groups}
    assert rates == {1e-4}


@pytest.mark.parametrize("width", [64, 128, 256])
def test_the_width_of_the_decoder_is_one_number(width):
    cfg = load(f"{BRIDGE}ade20k_resnet18_bridge.py")
    model = build(LazyConfig.apply_overrides(cfg, [f"decoder.width={width}"]))
    assert {shape.channels for shape in model.backbone.output_shape().values()} == {width}
    assert model.sem_seg_head.predictor.in_channels == width


@pytest.mark.parametrize("row", ["none", "v2t", "t2v", "two_way", "two_way_full"])
def test_the_modes_of_the_bridge_are_one_word(row):
    cfg = load(f"{BRIDGE}ade20k_resnet18_bridge.py")
    model = build(LazyConfig.apply_overrides(cfg, [f"{PREFIX}mode={row}"]))
    blocks = find_guided(model.backbone).guidance.blocks
    assert [block.to_text is not None for block in blocks] == [row not in ("none", "t2v")] * 2
    assert [block.to_image is not None for block in blocks] == [row not in ("none", "v2t")] * 2


def test_sizes_of_the_bridge_are_one_line():
    cfg = load(f"{BRIDGE}ade20k_resnet18_bridge.py")
    line = "level=res4 channels=256 blocks=1 visual_dim=128 text_dim=128 closing=False"
    changed = LazyConfig.apply_overrides(cfg, [PREFIX + word for word in line.split()])
    guided = find_guided(build(changed).backbone)
    assert len(guided.guidance.blocks) == 1 and guided.guidance.closing is None
    assert guided.output_shape()["res4"].channels == 256 + 128 + 150


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2"])
def test_the_bridge_costs_at_most_a_tenth_more(name):
    """Multiply-adds against Semantic FPN, decoder 128 wide, 512 x 512 pixels, text kept."""
    bridge, plain = (
        analyze(build(load(f"{BRIDGE}ade20k_{name}_{kind}.py")).eval(), (512, 512)).flops
        for kind in ("bridge", "semantic_fpn")
    )
    assert plain < bridge < 1.1 * plain


@pytest.mark.parametrize(
    ("project", "rows"),
    [
        (DENSECLIP, [*ROWS, *(f"{name}_released" for name in GUIDED)]),
        (ICPC, [f"{data}_{tower}_icpc" for data in STUFF for tower in TOWERS]),
        (BRIDGE, [f"ade20k_{n}_{k}" for n in LIGHTWEIGHT for k in KINDS]),
    ],
)
def test_there_are_all_rows_and_a_quickstart(project, rows):
    assert {f"{project}{name}.py" for name in ("quickstart", *rows)} <= set(model_zoo.list())
