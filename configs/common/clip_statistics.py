# Mean and standard deviation of RGB in 0..255 that OpenAI's CLIP was trained with, for Detectron2's
# own models; those of densedet ask the backbone.
pixel_mean = [122.7709383, 116.7460125, 104.09373615]
pixel_std = [68.5005327, 66.6321579, 70.3231630]
