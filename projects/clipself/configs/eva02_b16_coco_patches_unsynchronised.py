"""As eva02_b16_coco_patches.py with the batch that the released code really had.

There every one of 8 processes trained a student of its own, 2 images a step, on an eighth of the
images, drawn anew in every epoch; gradients were never synchronised and the student of the first
process was saved. One process with a batch of 2 does the same for as many steps: its 44,358 steps
see 88,716 of the 118,287 images, none of them twice, where a student there met 6 random eighths,
also 88,716 pictures, some of them again. Run it on one GPU. Which of the two is better is not
known.
"""

from .eva02_b16_coco_patches import clip, dataloader, lr_multiplier, model, optimizer, train

dataloader.train.total_batch_size = 2
train.output_dir = "output/clipself/eva02_b16_coco_patches_unsynchronised"
