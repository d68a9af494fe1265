"""DenseCLIP on a backbone that CLIP did not train: ResNet-18 of ImageNet, ADE20K.

Its last stage meets the text through an attention pool with random weights; the text tower is that
of ViT-B/16. Any model of timm with strides 4, 8, 16 and 32 will do: set `trunk.name`.
"""

from detectron2.config import LazyCall as L

from densedet.modeling.backbone import TimmBackbone

from .ade20k_rn50_denseclip import clip, dataloader, lr_multiplier, model, optimizer, train

clip.update(model="ViT-B-16-quickgelu", embed_dim=512)
model.backbone.bottom_up.trunk = L(TimmBackbone)(
    name="resnet18", embed_dim="${clip.embed_dim}", grid="${clip.grid}", pretrained=True
)
optimizer.params.lr_factors = {r"bottom_up\.trunk\.": 0.1}
train.output_dir = "output/denseclip/ade20k_resnet18_denseclip"
