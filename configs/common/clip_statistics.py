# Mean and standard deviation of RGB in 0..255 that OpenAI's CLIP was trained with, for Detectron2's
# own models; those of densedet ask the backbone.
from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

pixel_mean = [255 * value for value in OPENAI_DATASET_MEAN]
pixel_std = [255 * value for value in OPENAI_DATASET_STD]
