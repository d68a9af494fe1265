"""Small backbones that CLIP did not train, and the language bridge (arXiv 2310.07394).

Of the bridge's paper only the abstract was at hand: backbones, sizes and recipe are ours. ResNet,
MobileNet and the like carry weights of ImageNet; the text tower is that of CLIP's ViT-B/16, which
DenseCLIP (arXiv 2112.01518) takes for such backbones.
"""

from detectron2.config import LazyCall as L

from densedet.modeling.backbone import GuidedBackbone, TimmBackbone
from densedet.modeling.guidance import LanguageBridge

from .denseclip import guidance

decoder = dict(width=128)  # channels of FPN and head: 64, 128 or 256

trunk = L(TimmBackbone)(name="resnet18", embed_dim=None, grid=16, pretrained=True)


def lighten(model, clip, optimizer):
    """Narrow FPN and head, pictures whole in evaluation, one learning rate for everything."""
    clip.update(model="ViT-B-16-quickgelu", embed_dim=512)
    model.backbone.out_channels = "${decoder.width}"
    model.sem_seg_head.conv_dims = "${decoder.width}"
    for level in model.sem_seg_head.input_shape.values():
        level.channels = "${decoder.width}"
    model.update(window=None, window_stride=None)
    optimizer.params.update(lr_factors=None, weight_decays=None, weight_decay_norm=0.0)


def bridge(model, channels):
    """Put the language bridge between the backbone and the FPN."""
    model.backbone.bottom_up = L(GuidedBackbone)(
        trunk=model.backbone.bottom_up,
        guidance=L(LanguageBridge)(
            text=guidance.text,
            auxiliary=guidance.auxiliary,
            channels=channels,
            embed_dim="${clip.embed_dim}",
            visual_dim=256,
            text_dim=256,
            blocks=2,
            heads=2,
            self_heads=4,
            expansion=2,
            ffn_ratio=2,
            mode="two_way",
            closing=True,
            level="res5",
            temperature=0.07,
            deep_supervision=False,
        ),
    )
    model.pop("vocabulary", None)
