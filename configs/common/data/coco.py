"""COCO 2017, 80 classes, boxes and masks; the short side has 800 pixels, the long one up to 1333.

The files are those of Detectron2's ``coco_2017_train`` and ``coco_2017_val``, below
``DETECTRON2_DATASETS``.
"""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from densedet.data import (
    DetectionMapper,
    ResizeShortestEdge,
    build_test_loader,
    build_train_loader,
    get_records,
    register_coco_detection,
)
from densedet.evaluation import OpenVocabularyCOCOEvaluator

dataloader = OmegaConf.create()
dataloader.register = [L(register_coco_detection)()]

dataloader.train = L(build_train_loader)(
    dataset=L(get_records)(names="coco_train", filter_empty=True),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[
            L(ResizeShortestEdge)(short_edge_length=[800], max_size=1333, sample_style="choice"),
            L(T.RandomFlip)(prob=0.5, horizontal=True),
        ],
        use_instance_mask=False,
        mask_format="polygon",
    ),
    total_batch_size=16,
    num_workers=4,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_records)(names="coco_val", filter_empty=False),
    mapper=L(DetectionMapper)(
        is_train=False,
        augmentations=[
            L(ResizeShortestEdge)(short_edge_length=800, max_size=1333, sample_style="choice")
        ],
    ),
    num_workers=4,
)

dataloader.evaluator = L(OpenVocabularyCOCOEvaluator)(
    dataset_name="${..test.dataset.names}",
)
