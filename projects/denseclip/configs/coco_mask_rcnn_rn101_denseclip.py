"""DenseCLIP with Mask R-CNN on CLIP's ResNet-101, COCO, 12 epochs."""

from .coco_mask_rcnn_rn50_denseclip import clip, dataloader, lr_multiplier, model, optimizer, train

clip.update(model="RN101-quickgelu", embed_dim=512)
train.output_dir = "output/denseclip/coco_mask_rcnn_rn101_denseclip"
