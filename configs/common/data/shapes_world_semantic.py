"""Shapes World as semantic segmentation: 64 things and 6 kinds of stuff, 160 x 160 pixels."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from densedet.data import (
    LabelReader,
    SemanticMapper,
    build_test_loader,
    build_train_loader,
    get_records,
)
from densedet.data.shapes_world import register_shapes_world
from densedet.evaluation import OpenVocabularySemanticEvaluator

dataloader = OmegaConf.create()
dataloader.register = [L(register_shapes_world)(root="datasets")]

dataloader.train = L(build_train_loader)(
    dataset=L(get_records)(names="shapes_world_semantic_train", filter_empty=False),
    mapper=L(SemanticMapper)(
        is_train=True,
        augmentations=[L(T.RandomFlip)(prob=0.5, horizontal=True)],
        num_classes=70,
    ),
    total_batch_size=8,
    num_workers=0,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_records)(names="shapes_world_semantic_val", filter_empty=False),
    mapper=L(SemanticMapper)(is_train=False, augmentations=[], num_classes=70),
    num_workers=0,
)

dataloader.evaluator = L(OpenVocabularySemanticEvaluator)(
    dataset_name="${..test.dataset.names}",
    sem_seg_loading_fn=L(LabelReader)(num_classes=70),
    output_dir="${oc.select:train.output_dir,null}",
)
