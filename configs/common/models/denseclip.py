"""The guidance of DenseCLIP (arXiv 2112.01518) for a baseline: prompts, context decoder, scores.

`guide` puts it between backbone and FPN. `use_released_switches` gives a model the behaviour of the
published code where ours differs, for released checkpoints and for training as it was.
"""

from detectron2.config import LazyCall as L

from densedet.clip import create_text_encoder
from densedet.modeling.backbone import GuidedBackbone
from densedet.modeling.guidance import (
    BoxScoreLoss,
    ContextDecoder,
    DenseCLIP,
    PixelScoreLoss,
    PromptedTextEncoder,
)
from densedet.modeling.meta_arch import GuidedRCNN, GuidedRetinaNet
from densedet.modeling.retinanet import ReassigningMatcher
from densedet.vocabulary import Vocabulary

guidance = L(DenseCLIP)(
    text=L(PromptedTextEncoder)(
        encoder=L(create_text_encoder)(model="${clip.model}", pretrained="${clip.pretrained}"),
        vocabulary=L(Vocabulary.named)(name="ade20k_150_denseclip"),
        num_contexts=8,
        class_tokens=5,
        context_std=1.0,
        frozen=True,
    ),
    decoder=L(ContextDecoder)(embed_dim="${clip.embed_dim}", width=256, heads=4, layers=3),
    auxiliary=L(PixelScoreLoss)(weight=0.4, mean="valid"),
    embed_dim="${clip.embed_dim}",
    fused_level="res5",
    fuse_scaled=False,
    prompting="post",
)


def guide(model, optimizer):
    """Semantic FPN: score maps between the backbone and the FPN."""
    optimizer.params.weight_decays = {r"guidance\.decoder\.layers\.\d+\.norm": 0.0}
    trunk = model.backbone.bottom_up
    trunk.aligned = True
    model.backbone.bottom_up = L(GuidedBackbone)(trunk=trunk, guidance=guidance)
    model.pop("vocabulary", None)


def guide_detector(model, optimizer):
    """RetinaNet or Mask R-CNN on COCO: scores over the temperature, loss from the boxes."""
    guide(model, optimizer)
    guided = model.backbone.bottom_up.guidance
    guided.text.vocabulary.name = "coco"
    guided.auxiliary = L(BoxScoreLoss)(weight=1.0)
    guided.fuse_scaled = True
    retinanet = "anchor_matcher" in model
    model._target_ = GuidedRetinaNet if retinanet else GuidedRCNN
    if retinanet:
        model.backbone.top_block.in_channels += 80  # P6 sees the scores
    model.pixel_mean = model.pixel_std = None  # those of the weights


def use_released_switches(model, clip, optimizer):
    """What the published code does: see projects/denseclip/README.md, "What differs"."""
    text = r"guidance\.text\.encoder\."
    guided = model.backbone.bottom_up.guidance
    guided.text.frozen = False
    optimizer.params.lr_factors[text] = 0.0  # and up to the floor of the schedule
    if "sem_seg_head" in model:
        guided.auxiliary.mean = model.sem_seg_head.mean = "all"
        return
    clip.positions = "crop"
    if "anchor_matcher" in model:
        model.anchor_matcher._target_ = ReassigningMatcher
        model.loss_normalizer = "batch"
