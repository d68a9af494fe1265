"""CLIPSelf, OpenAI CLIP RN50, grid patches of COCO. Not a recipe of the paper."""

from .eva02_b16_coco_patches import clip, dataloader, lr_multiplier, model, optimizer, train

clip.update(model="RN50-quickgelu", pretrained="openai", stride=32)
# layer1 to layer4 and q, k and positions of the attention pool; the stem and all batch norms are
# frozen
model.trainable = 4
train.output_dir = "output/clipself/rn50_coco_patches"
