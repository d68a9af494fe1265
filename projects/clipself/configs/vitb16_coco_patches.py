"""CLIPSelf, OpenAI CLIP ViT-B/16, grid patches of COCO. Not a recipe of the paper."""

from .eva02_b16_coco_patches import clip, dataloader, lr_multiplier, model, optimizer, train

clip.update(model="ViT-B-16-quickgelu", pretrained="openai")
# the 12 blocks; 13 would add the position embedding, 14 the patch embedding
model.trainable = 12
train.output_dir = "output/clipself/vitb16_coco_patches"
