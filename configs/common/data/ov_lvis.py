"""OV-LVIS: LVIS v1 without its rare annotations in training; boxes and masks; 1024 pixels.

F-ViT, ViT-B/16 (arXiv 2310.01403). For another size set ``dataloader.image_size``.
"""

from detectron2.config import LazyCall as L

from densedet.evaluation import OpenVocabularyLVISEvaluator

from .ov_coco import dataloader

dataloader.image_size = 1024

dataloader.train.dataset.names = "ov_lvis_train_seen"
dataloader.train.mapper.use_instance_mask = True
dataloader.train.mapper.mask_format = "bitmask"
dataloader.test.dataset.names = "ov_lvis_val"

# AP, APr (rare = unseen), APc and APf of boxes and masks; LVIS's own limit of 300 an image.
dataloader.evaluator = L(OpenVocabularyLVISEvaluator)(
    dataset_name="${..test.dataset.names}",
)
