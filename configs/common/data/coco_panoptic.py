"""COCO panoptic, 133 categories; the sizes of Detectron2's Panoptic FPN: short side 640 to 800."""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from densedet.data import (
    PanopticMapper,
    ResizeShortestEdge,
    build_test_loader,
    build_train_loader,
    get_records,
    register_coco_panoptic,
)
from densedet.evaluation import OpenVocabularyPanopticEvaluator
from densedet.vocabulary import Vocabulary

dataloader = OmegaConf.create()
dataloader.register = [L(register_coco_panoptic)()]
# of the mappers; and what a model is asked for where this stands in `dataloader.evaluators`
dataloader.vocabulary = L(Vocabulary.named)(name="coco_panoptic")

dataloader.train = L(build_train_loader)(
    dataset=L(get_records)(names="coco_panoptic_train", filter_empty=False),
    mapper=L(PanopticMapper)(
        is_train=True,
        augmentations=[
            L(ResizeShortestEdge)(
                short_edge_length=[640, 672, 704, 736, 768, 800],
                max_size=1333,
                sample_style="choice",
            ),
            L(T.RandomFlip)(prob=0.5, horizontal=True),
        ],
        vocabulary="${...vocabulary}",
    ),
    total_batch_size=16,
    num_workers=4,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_records)(names="coco_panoptic_val", filter_empty=False),
    mapper=L(PanopticMapper)(
        is_train=False,
        augmentations=[
            L(ResizeShortestEdge)(short_edge_length=800, max_size=1333, sample_style="choice")
        ],
        vocabulary="${...vocabulary}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(OpenVocabularyPanopticEvaluator)(dataset_name="${..test.dataset.names}")
