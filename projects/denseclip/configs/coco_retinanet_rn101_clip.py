"""RetinaNet on CLIP's ResNet-101, COCO, 12 epochs: the CLIP-only baseline of DenseCLIP."""

from .coco_retinanet_rn50_clip import clip, dataloader, lr_multiplier, model, optimizer, train

clip.update(model="RN101-quickgelu", embed_dim=512)
train.output_dir = "output/denseclip/coco_retinanet_rn101_clip"
