"""Grid patches of COCO train2017; region classification on COCO panoptic val2017.

For another size set ``dataloader.image_size``; the model follows.
"""

from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from densedet.clip import VocabularyEmbedder
from densedet.data import (
    RegionMapper,
    RegionTruthMapper,
    build_test_loader,
    build_train_loader,
    get_records,
    register_all,
    register_clipself,
)
from densedet.evaluation import RegionClassificationEvaluator
from densedet.regions import GridRegions

dataloader = OmegaConf.create()
dataloader.image_size = 1024
dataloader.register = [L(register_clipself)(), L(register_all)()]

dataloader.train = L(build_train_loader)(
    dataset=L(get_records)(names="clipself_coco_train", filter_empty=False),
    # an image of less than 10 pixels is replaced by another; skip_unreadable=True does that with
    # unreadable ones as well, as the published loader does
    mapper=L(RegionMapper)(regions=L(GridRegions)(max_split=6, max_regions=20)),
    total_batch_size=16,
    num_workers=4,
    redraw_empty=True,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_records)(names="coco_panoptic_val", filter_empty=False),
    mapper=L(RegionTruthMapper)(size="${dataloader.image_size}", stride="${clip.stride}"),
    num_workers=4,
)

dataloader.evaluator = L(RegionClassificationEvaluator)(
    dataset_name="${..test.dataset.names}",
    embedder=L(VocabularyEmbedder)(
        model="${clip.model}", pretrained="${clip.pretrained}", templates="clipself63"
    ),
    modes=["boxes", "masks", "crops"],
)
