"""The names of DenseCLIP's released weights (arXiv 2112.01518) and where densedet has them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from densedet.errors import CheckpointError
from densedet.weights import StateDict, abbreviated

_TRUNK = "backbone.bottom_up.trunk."
GUIDANCE = "backbone.bottom_up.guidance."
_RATIOS = _SCALES = 3  # of the anchors of a RetinaNet
ANCHORS = _RATIOS * _SCALES  # at every location


@dataclass(frozen=True)
class _Rule:
    """Two beginnings of names that mean the same; whole names where they do not end in a dot.

    ``{}`` stands for a number, the same in both except for the first one, which is ours by
    ``factor * number + offset``. ``anchors`` marks channels that are ordered by anchor.
    """

    released: str
    ours: str
    offset: int = 0
    factor: int = 1
    anchors: bool = False

    def to_ours(self, name: str) -> str | None:
        """Our name of a released one; None if the rule is not about it."""
        numbers, rest = _split(self.released, name)
        if numbers is None:
            return None
        first = [self.factor * n + self.offset for n in numbers[:1]]
        return self.ours.format(*first, *numbers[1:]) + rest

    def to_released(self, name: str) -> str | None:
        """The released name of ours; None if the rule is not about it."""
        numbers, rest = _split(self.ours, name)
        if numbers is None:
            return None
        first = [divmod(n - self.offset, self.factor) for n in numbers[:1]]
        if any(quotient < 0 or remainder for quotient, remainder in first):
            return None
        return self.released.format(*(n for n, _ in first), *numbers[1:]) + rest


def _split(prefix: str, name: str) -> tuple[list[int] | None, str]:
    """The numbers at the ``{}`` of a rule's beginning of ``name`` (None: another), and the rest."""
    pattern = re.escape(prefix).replace(r"\{\}", r"(\d+)") + ("" if prefix.endswith(".") else "$")
    found = re.match(pattern, name)
    return ([int(n) for n in found.groups()], name[found.end() :]) if found else (None, "")


# The first rule that fits counts, in both directions.
_SHARED = (
    _Rule("contexts", GUIDANCE + "text.contexts"),
    _Rule("gamma", GUIDANCE + "gamma"),
    _Rule("text_encoder.", GUIDANCE + "text.encoder."),
    _Rule("context_decoder.decoder.", GUIDANCE + "decoder.layers."),
    _Rule("context_decoder.", GUIDANCE + "decoder."),
    _Rule("backbone.fpn1.", _TRUNK + "levels.0."),
    _Rule("backbone.fpn2.", _TRUNK + "levels.1."),
    _Rule("backbone.fpn3.", _TRUNK + "levels.2.0."),
    _Rule("backbone.fpn4.", _TRUNK + "levels.3."),
    _Rule("backbone.", _TRUNK + "visual.tower."),
)
_FOUR_LEVELS = (
    _Rule("neck.lateral_convs.{}.conv.", "backbone.fpn_lateral{}.", offset=2),
    _Rule("neck.fpn_convs.{}.conv.", "backbone.fpn_output{}.", offset=2),
)
_SEGMENTATION = (
    *_FOUR_LEVELS,
    _Rule("decode_head.scale_heads.{}.{}.bn.", "sem_seg_head.p{}.{}.norm.", offset=2),
    _Rule("decode_head.scale_heads.{}.{}.conv.", "sem_seg_head.p{}.{}.", offset=2),
    _Rule("decode_head.conv_seg.", "sem_seg_head.predictor."),
)
_RETINANET = (
    _Rule("neck.fpn_convs.3.conv.", "backbone.top_block.p6."),
    _Rule("neck.fpn_convs.4.conv.", "backbone.top_block.p7."),
    _Rule("neck.lateral_convs.{}.conv.", "backbone.fpn_lateral{}.", offset=3),
    _Rule("neck.fpn_convs.{}.conv.", "backbone.fpn_output{}.", offset=3),
    _Rule("bbox_head.cls_convs.{}.conv.", "head.cls_subnet.{}.", factor=2),
    _Rule("bbox_head.reg_convs.{}.conv.", "head.bbox_subnet.{}.", factor=2),
    _Rule("bbox_head.retina_cls.", "head.cls_score.", anchors=True),
    _Rule("bbox_head.retina_reg.", "head.bbox_pred.", anchors=True),
)
_RPN, _BOXES, _MASKS = "proposal_generator.rpn_head.", "roi_heads.box_", "roi_heads.mask_head."
_MASK_RCNN = (
    *_FOUR_LEVELS,
    _Rule("rpn_head.rpn_conv.", _RPN + "conv."),
    _Rule("rpn_head.rpn_cls.", _RPN + "objectness_logits."),
    _Rule("rpn_head.rpn_reg.", _RPN + "anchor_deltas."),
    _Rule("roi_head.bbox_head.shared_fcs.{}.", _BOXES + "head.fc{}.", offset=1),
    _Rule("roi_head.bbox_head.fc_cls.", _BOXES + "predictor.cls_score."),
    _Rule("roi_head.bbox_head.fc_reg.", _BOXES + "predictor.bbox_pred."),
    _Rule("roi_head.mask_head.convs.{}.conv.", _MASKS + "mask_fcn{}.", offset=1),
    _Rule("roi_head.mask_head.upsample.", _MASKS + "deconv."),
    _Rule("roi_head.mask_head.conv_logits.", _MASKS + "predictor."),
)
# Of the names, released and ours, that only such a model has.
_LAYOUTS = (
    ("decode_head.", "sem_seg_head.", _SEGMENTATION),
    ("bbox_head.retina_", "head.", _RETINANET),
    ("roi_head.", "roi_heads.", _MASK_RCNN),
)


def from_released(state: Mapping[str, Tensor], source: object = "the weights") -> StateDict:
    """Rename released weights to densedet's names; RetinaNet's anchors change their order.

    Args:
        state: released names -> tensors of any kind, e.g. of a part of a model or gradients; the
            names of the head tell which model it is.
        source: what to call the weights in the message (usually the file).

    Raises:
        CheckpointError: names that no DenseCLIP model has.
    """
    return _renamed(state, 0, source)


def to_released(state: Mapping[str, Tensor], source: object = "the weights") -> StateDict:
    """Inverse of `from_released`: densedet's names -> released names."""
    return _renamed(state, 1, source)


def not_denseclip(source: object, what: str) -> str:
    """The message on a file that is something else, ``what``."""
    return (
        f"{source}: {what}, not a checkpoint of DenseCLIP's Semantic FPN, RetinaNet or Mask R-CNN; "
        "choose one of those"
    )


def _renamed(state: Mapping[str, Tensor], side: int, source: object) -> StateDict:
    rules = (*_rules(state, side, source), *_SHARED)
    renamed: StateDict = {}
    unknown = []
    for name, tensor in state.items():
        new, anchors = _new_name(name, side, rules)
        if new is None or new in renamed:
            unknown.append(name)
        else:
            renamed[new] = _other_anchor_order(name, tensor, source) if anchors else tensor
    if unknown:
        raise CheckpointError(
            f"{source}: no place for {len(unknown)} of its {len(state)} entries in a DenseCLIP "
            f"{('of densedet', 'as published')[side]}: {abbreviated(unknown)}; choose a checkpoint "
            "of DenseCLIP's Semantic FPN, RetinaNet or Mask R-CNN"
        )
    return renamed


def _new_name(name: str, side: int, rules: Iterable[_Rule]) -> tuple[str | None, bool]:
    for rule in rules:
        new = rule.to_released(name) if side else rule.to_ours(name)
        if new is not None:
            return new, rule.anchors
    return None, False


def _rules(names: Iterable[str], side: int, source: object) -> tuple[_Rule, ...]:
    names = list(names)
    for *markers, rules in _LAYOUTS:
        if any(name.startswith(markers[side]) for name in names):
            return rules
    what = f"a file with entries such as {abbreviated(names, 3)}"
    if side == 0 and any(name.startswith("visual.") for name in names):
        what = "CLIP itself (convert it with --model)"
    raise CheckpointError(not_denseclip(source, what))


def _other_anchor_order(name: str, tensor: Tensor, source: object) -> Tensor:
    """Channels of ratio-major anchors (mmdetection) to size-major ones (Detectron2), or back."""
    if not tensor.ndim or len(tensor) % ANCHORS:
        raise CheckpointError(
            f"{source}: {name} of shape {tuple(tensor.shape)} is not for {ANCHORS} anchors at a "
            "location, as those of DenseCLIP's RetinaNet are; choose a checkpoint of it"
        )
    ratios_first = tensor.unflatten(0, (_RATIOS, _SCALES, -1))
    return ratios_first.transpose(0, 1).flatten(0, 2)
