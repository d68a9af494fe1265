"""Semantic FPN on CLIP's ViT-B/16, ADE20K, crops of 640: the CLIP-only baseline of DenseCLIP."""

from densedet.modeling.backbone import AlignedViT

from .ade20k_rn50_clip import clip, dataloader, lr_multiplier, model, optimizer, train

clip.update(model="ViT-B-16-quickgelu", embed_dim=512, grid=40, double_class_embedding=False)
trunk = model.backbone.bottom_up
trunk._target_ = AlignedViT
trunk.update(taps=["block3", "block5", "block7", "block11"], drop_path=0.0)
trunk.visual.double_class_embedding = "${clip.double_class_embedding}"
dataloader.crop_size = 640
model.window_stride = 426
train.output_dir = "output/denseclip/ade20k_vitb16_clip"
