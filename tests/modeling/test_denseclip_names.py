"""Every name of the released DenseCLIP checkpoints, in both directions."""

from collections.abc import Iterator

import pytest
import torch
from detectron2.config import instantiate

from densedet import model_zoo
from densedet.errors import CheckpointError
from densedet.modeling.denseclip_names import from_released, to_released
from densedet.weights import fit_strictly

TRUNK, GUIDANCE = "backbone.bottom_up.trunk.", "backbone.bottom_up.guidance."
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

# The head of each model comes first: it tells which model it is.
SEGMENTOR = {
    "decode_head.conv_seg.weight": "sem_seg_head.predictor.weight",
    "decode_head.scale_heads.0.0.conv.weight": "sem_seg_head.p2.0.weight",
    "decode_head.scale_heads.3.4.conv.weight": "sem_seg_head.p5.4.weight",
    **{f"decode_head.scale_heads.2.2.bn.{leaf}": f"sem_seg_head.p4.2.norm.{leaf}" for leaf in NORM},
    "neck.lateral_convs.0.conv.weight": "backbone.fpn_lateral2.weight",
    "neck.lateral_convs.3.conv.bias": "backbone.fpn_lateral5.bias",
    "neck.fpn_convs.3.conv.weight": "backbone.fpn_output5.weight",
}
RETINANET = {
    "bbox_head.retina_cls.bias": "head.cls_score.bias",
    "bbox_head.retina_reg.weight": "head.bbox_pred.weight",
    "bbox_head.cls_convs.0.conv.weight": "head.cls_subnet.0.weight",
    "bbox_head.cls_convs.3.conv.bias": "head.cls_subnet.6.bias",
    "bbox_head.reg_convs.2.conv.weight": "head.bbox_subnet.4.weight",
    "neck.lateral_convs.0.conv.weight": "backbone.fpn_lateral3.weight",
    "neck.lateral_convs.2.conv.weight": "backbone.fpn_lateral5.weight",
    "neck.fpn_convs.2.conv.bias": "backbone.fpn_output5.bias",
    "neck.fpn_convs.3.conv.weight": "backbone.top_block.p6.weight",
    "neck.fpn_convs.4.conv.weight": "backbone.top_block.p7.weight",
}
MASK_RCNN = {
    "roi_head.bbox_head.fc_cls.weight": "roi_heads.box_predictor.cls_score.weight",
    "roi_head.bbox_head.fc_reg.bias": "roi_heads.box_predictor.bbox_pred.bias",
    "roi_head.bbox_head.shared_fcs.1.weight": "roi_heads.box_head.fc2.weight",
    "roi_head.mask_head.convs.3.conv.weight": "roi_heads.mask_head.mask_fcn4.weight",
    "roi_head.mask_head.upsample.weight": "roi_heads.mask_head.deconv.weight",
    "roi_head.mask_head.conv_logits.bias": "roi_heads.mask_head.predictor.bias",
    "rpn_head.rpn_conv.weight": "proposal_generator.rpn_head.conv.weight",
    "rpn_head.rpn_cls.weight": "proposal_generator.rpn_head.objectness_logits.weight",
    "rpn_head.rpn_reg.bias": "proposal_generator.rpn_head.anchor_deltas.bias",
    "neck.lateral_convs.1.conv.weight": "backbone.fpn_lateral3.weight",
    "neck.fpn_convs.3.conv.weight": "backbone.fpn_output5.weight",
}
SHARED = {
    "contexts": GUIDANCE + "text.contexts",
    "gamma": GUIDANCE + "gamma",
    **{f"backbone.bn1.{leaf}": f"{TRUNK}visual.tower.bn1.{leaf}" for leaf in NORM},
    "backbone.conv1.weight": TRUNK + "visual.tower.conv1.weight",
    "backbone.layer4.2.bn3.running_var": TRUNK + "visual.tower.layer4.2.bn3.running_var",
    "backbone.layer1.0.downsample.1.bias": TRUNK + "visual.tower.layer1.0.downsample.1.bias",
    "backbone.attnpool.c_proj.weight": TRUNK + "visual.tower.attnpool.c_proj.weight",
    "backbone.class_embedding": TRUNK + "visual.tower.class_embedding",
    "backbone.positional_embedding": TRUNK + "visual.tower.positional_embedding",
    "backbone.transformer.resblocks.11.attn.in_proj_weight": TRUNK
    + "visual.tower.transformer.resblocks.11.attn.in_proj_weight",
    "backbone.proj": TRUNK + "visual.tower.proj",
    "backbone.fpn1.0.weight": TRUNK + "levels.0.0.weight",
    "backbone.fpn1.2.running_mean": TRUNK + "levels.0.2.running_mean",
    "backbone.fpn1.4.bias": TRUNK + "levels.0.4.bias",
    "backbone.fpn2.1.weight": TRUNK + "levels.1.1.weight",
    "backbone.fpn3.bias": TRUNK + "levels.2.0.bias",
    "backbone.fpn4.0.weight": TRUNK + "levels.3.0.weight",
    "text_encoder.positional_embedding": GUIDANCE + "text.encoder.positional_embedding",
    "text_encoder.ln_final.bias": GUIDANCE + "text.encoder.ln_final.bias",
    "text_encoder.transformer.resblocks.1.mlp.c_fc.weight": GUIDANCE
    + "text.encoder.transformer.resblocks.1.mlp.c_fc.weight",
    "context_decoder.memory_proj.2.weight": GUIDANCE + "decoder.memory_proj.2.weight",
    "context_decoder.text_proj.1.bias": GUIDANCE + "decoder.text_proj.1.bias",
    "context_decoder.decoder.2.cross_attn.q_proj.weight": GUIDANCE
    + "decoder.layers.2.cross_attn.q_proj.weight",
    "context_decoder.decoder.0.norm3.bias": GUIDANCE + "decoder.layers.0.norm3.bias",
    "context_decoder.decoder.1.mlp.3.weight": GUIDANCE + "decoder.layers.1.mlp.3.weight",
    "context_decoder.out_proj.0.weight": GUIDANCE + "decoder.out_proj.0.weight",
}
HEADS = pytest.mark.parametrize("head", [SEGMENTOR, RETINANET, MASK_RCNN])


@HEADS
def test_names_in_both_directions(head: dict[str, str]) -> None:
    names = {**head, **SHARED}
    state = {name: torch.arange(18.0) + i for i, name in enumerate(names)}
    ours = from_released(state)
    assert list(ours) == list(names.values())
    back = to_released(ours)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("channels", [80, 4])
def test_anchors_of_retinanet_change_their_order(channels: int) -> None:
    weight = torch.randn(9 * channels, 2, 3, 3)
    released = {"bbox_head.retina_cls.weight": weight, "bbox_head.retina_reg.bias": weight[:, 0]}
    ours = from_released(released)
    anchors = weight.unflatten(0, (9, channels))
    expected = torch.cat([anchors[k] for k in (0, 3, 6, 1, 4, 7, 2, 5, 8)])
    assert torch.equal(ours["head.cls_score.weight"], expected)
    assert torch.equal(ours["head.bbox_pred.bias"], expected[:, 0])
    back = to_released(ours)
    assert all(torch.equal(back[name], tensor) for name, tensor in released.items())


def test_other_anchors_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"retina_cls.weight of shape \(480, 8, 3, 3\)"):
        from_released({"bbox_head.retina_cls.weight": torch.zeros(480, 8, 3, 3)})


@pytest.mark.parametrize(
    "name",
    ["auxiliary_head.conv_seg.weight", "gamma2", "neck.fpn_convs.0.norm.weight", "my.contexts"],
)
def test_a_name_without_a_place_is_an_error(name: str) -> None:
    state = {"decode_head.conv_seg.bias": torch.zeros(3), name: torch.zeros(3)}
    with pytest.raises(CheckpointError, match=f"a.pth: no place for 1 of its 2 entries.*: {name};"):
        from_released(state, "a.pth")


def test_a_weight_without_a_released_name_is_an_error() -> None:
    state = {"head.cls_subnet.1.weight": torch.zeros(3), "head.cls_score.bias": torch.zeros(9)}
    with pytest.raises(CheckpointError, match="1 of its 2 entries .* as published: head.cls_subn"):
        to_released(state)


# ------------------------------------------------------------------ the published models, by name


def leaves(*modules: str, names: tuple[str, ...] = ("weight", "bias")) -> list[str]:
    return [f"{module}.{name}" for module in modules for name in names]


def convolution(conv: str, norm: str) -> list[str]:
    return [f"{conv}.weight", *leaves(norm, names=NORM)]


def resnet(depths: tuple[int, ...]) -> Iterator[str]:
    for i in (1, 2, 3):
        yield from convolution(f"conv{i}", f"bn{i}")
    for stage, depth in enumerate(depths, start=1):
        for block in (f"layer{stage}.{i}" for i in range(depth)):
            for i in (1, 2, 3):
                yield from convolution(f"{block}.conv{i}", f"{block}.bn{i}")
        first = f"layer{stage}.0.downsample"
        yield from convolution(f"{first}.0", f"{first}.1")
    yield "attnpool.positional_embedding"
    yield from leaves(*(f"attnpool.{x}_proj" for x in "qkvc"))


def transformer(layers: int) -> Iterator[str]:
    for block in (f"transformer.resblocks.{i}" for i in range(layers)):
        modules = ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj")
        yield from leaves(*(f"{block}.{module}" for module in modules))
        yield from (f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias")


def vit() -> Iterator[str]:
    yield from ("class_embedding", "positional_embedding", "proj", "conv1.weight")
    yield from leaves("ln_pre", "ln_post")
    yield from transformer(12)
    yield from leaves("fpn1.0", "fpn1.1", "fpn1.4", "fpn2.0", "fpn2.1", "fpn3", "fpn4.0")
    yield from leaves("fpn1.2", names=NORM)


def guidance() -> Iterator[str]:
    yield from ("contexts", "gamma")
    text = ("positional_embedding", "text_projection", "token_embedding.weight")
    yield from (f"text_encoder.{name}" for name in (*text, *leaves("ln_final"), *transformer(12)))
    ends = ("memory_proj.0", "memory_proj.1", "memory_proj.2", "text_proj.0", "text_proj.1")
    yield from leaves(*(f"context_decoder.{m}" for m in (*ends, "out_proj.0", "out_proj.1")))
    for layer in (f"context_decoder.decoder.{i}" for i in range(3)):
        for attention in (f"{layer}.self_attn", f"{layer}.cross_attn"):
            yield from (f"{attention}.{x}_proj.weight" for x in "qkv")
            yield from leaves(f"{attention}.proj")
        yield from leaves(*(f"{layer}.{m}" for m in ("norm1", "norm2", "norm3", "mlp.0", "mlp.3")))


def neck(laterals: int, outputs: int) -> list[str]:
    convs = [f"neck.lateral_convs.{i}.conv" for i in range(laterals)]
    return leaves(*convs, *(f"neck.fpn_convs.{i}.conv" for i in range(outputs)))


def semantic_fpn() -> Iterator[str]:
    yield from neck(4, 4)
    for place in ("0.0", "1.0", "2.0", "2.2", "3.0", "3.2", "3.4"):
        block = f"decode_head.scale_heads.{place}"
        yield from convolution(f"{block}.conv", f"{block}.bn")
    yield from leaves("decode_head.conv_seg")


def retinanet() -> list[str]:
    convs = [f"bbox_head.{kind}_convs.{i}.conv" for kind in ("cls", "reg") for i in range(4)]
    return neck(3, 5) + leaves(*convs, "bbox_head.retina_cls", "bbox_head.retina_reg")


def mask_rcnn() -> list[str]:
    box = [f"bbox_head.{name}" for name in ("shared_fcs.0", "shared_fcs.1", "fc_cls", "fc_reg")]
    masks = [f"mask_head.convs.{i}.conv" for i in range(4)]
    masks += ["mask_head.upsample", "mask_head.conv_logits"]
    rpn = [f"rpn_head.rpn_{name}" for name in ("conv", "cls", "reg")]
    return neck(4, 4) + leaves(*rpn, *(f"roi_head.{name}" for name in (*box, *masks)))


RN50, RN101 = (3, 4, 6, 3), (3, 4, 23, 3)
PUBLISHED = {
    "ade20k_rn50": ([*resnet(RN50)], [*semantic_fpn()], 624),
    "ade20k_rn101": ([*resnet(RN101)], [*semantic_fpn()], 930),
    "ade20k_vitb16": ([*vit()], [*semantic_fpn()], 456),
    "coco_retinanet_rn50": ([*resnet(RN50)], retinanet(), 600),
    "coco_retinanet_rn101": ([*resnet(RN101)], retinanet(), 906),
    "coco_mask_rcnn_rn50": ([*resnet(RN50)], mask_rcnn(), 606),
    "coco_mask_rcnn_rn101": ([*resnet(RN101)], mask_rcnn(), 912),
}
SHAPES = {
    "ade20k_rn50": {
        "gamma": (1024,),
        "neck.lateral_convs.3.conv.weight": (256, 2198, 1, 1),
        "backbone.attnpool.positional_embedding": (257, 2048),
        "text_encoder.positional_embedding": (13, 512),
    },
    "ade20k_vitb16": {
        "gamma": (512,),
        "neck.lateral_convs.2.conv.weight": (256, 918, 1, 1),
        "backbone.positional_embedding": (1601, 768),
    },
    "coco_retinanet_rn50": {
        "neck.fpn_convs.3.conv.weight": (256, 2128, 3, 3),
        "bbox_head.retina_cls.weight": (720, 256, 3, 3),
        "backbone.attnpool.positional_embedding": (1765, 2048),
    },
    "coco_mask_rcnn_rn101": {"roi_head.bbox_head.fc_cls.weight": (81, 1024), "gamma": (512,)},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_maps_without_leftovers(name: str) -> None:
    trunk, head, count = PUBLISHED[name]
    expected = [f"backbone.{x}" for x in trunk] + [*guidance()] + head
    assert len(set(expected)) == len(expected) == count
    cfg = model_zoo.get_config(f"projects/denseclip/configs/{name}_denseclip_released.py")
    cfg.clip.pretrained = None
    with torch.device("meta"):
        model = instantiate(cfg.model)
    released = to_released(model.state_dict())
    assert set(released) == set(expected)
    found = {key: tuple(released[key].shape) for key in SHAPES.get(name, {})}
    assert found == SHAPES.get(name, {})
    assert fit_strictly(model, from_released(released), name).keys() == model.state_dict().keys()
