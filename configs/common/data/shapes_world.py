"""Shapes World, 160 x 160 pixels, split "kind": 48 seen things; "ball" and "kite" are unseen."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from densedet.data import DetectionMapper, build_test_loader, build_train_loader, get_records
from densedet.data.shapes_world import register_shapes_world
from densedet.evaluation import OpenVocabularyCOCOEvaluator

dataloader = OmegaConf.create()
dataloader.register = [L(register_shapes_world)(root="datasets")]

dataloader.train = L(build_train_loader)(
    dataset=L(get_records)(names="shapes_world_kind_train_seen", filter_empty=True),
    mapper=L(DetectionMapper)(
        is_train=True,
        augmentations=[L(T.RandomFlip)(prob=0.5, horizontal=True)],
        use_instance_mask=True,
        mask_format="bitmask",
    ),
    total_batch_size=8,
    num_workers=0,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_records)(names="shapes_world_kind_val", filter_empty=False),
    mapper=L(DetectionMapper)(is_train=False, augmentations=[]),
    num_workers=0,
)

dataloader.evaluator = L(OpenVocabularyCOCOEvaluator)(dataset_name="${..test.dataset.names}")
