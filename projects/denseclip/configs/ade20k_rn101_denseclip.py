"""DenseCLIP with Semantic FPN on CLIP's ResNet-101, ADE20K."""

from .ade20k_rn50_denseclip import clip, dataloader, lr_multiplier, model, optimizer, train

clip.update(model="RN101-quickgelu", embed_dim=512)
train.output_dir = "output/denseclip/ade20k_rn101_denseclip"
