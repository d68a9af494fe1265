"""OV-COCO: 48 seen and 17 unseen classes; images of 640 pixels (F-ViT, ViT-B/16, arXiv 2310.01403).

For another size set ``dataloader.image_size``; the model of F-ViT pads to it.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from densedet.data import (
    DetectionMapper,
    build_test_loader,
    build_train_loader,
    get_records,
    large_scale_jitter,
    register_all,
    resize_longest_side,
)
from densedet.evaluation import OpenVocabularyCOCOEvaluator

dataloader = OmegaConf.create()
dataloader.image_size = 640
dataloader.register = [L(register_all)()]

dataloader.train = L(build_train_loader)(
    dataset=L(get_records)(names="ov_coco_train_seen", filter_empty=True),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=L(large_scale_jitter)(size="${....image_size}"),
        use_instance_mask=False,
    ),
    total_batch_size=64,
    num_workers=4,
    redraw_empty=True,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_records)(names="ov_coco_val", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=L(resize_longest_side)(size="${....image_size}"),
    ),
    num_workers=4,
)

dataloader.evaluator = L(OpenVocabularyCOCOEvaluator)(
    dataset_name="${..test.dataset.names}",
)
