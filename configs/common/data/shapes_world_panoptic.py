"""Shapes World as panoptic segmentation, split "kind": "ball" and "kite" are unseen things."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from densedet.data import PanopticMapper, build_test_loader, build_train_loader, get_records
from densedet.data.shapes_world import register_shapes_world
from densedet.evaluation import OpenVocabularyPanopticEvaluator
from densedet.vocabulary import Vocabulary

dataloader = OmegaConf.create()
dataloader.register = [L(register_shapes_world)(root="datasets")]

dataloader.train = L(build_train_loader)(
    dataset=L(get_records)(names="shapes_world_panoptic_kind_train", filter_empty=False),
    mapper=L(PanopticMapper)(
        is_train=True,
        augmentations=[L(T.RandomFlip)(prob=0.5, horizontal=True)],
        vocabulary=L(Vocabulary.named)(name="shapes_world_kind"),
    ),
    total_batch_size=8,
    num_workers=0,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_records)(names="shapes_world_panoptic_kind_val", filter_empty=False),
    mapper=L(PanopticMapper)(
        is_train=False, augmentations=[], vocabulary="${...train.mapper.vocabulary}"
    ),
    num_workers=0,
)

dataloader.evaluator = L(OpenVocabularyPanopticEvaluator)(dataset_name="${..test.dataset.names}")
