"""ADE20K, 150 classes; crops of 512 pixels (DenseCLIP, arXiv 2112.01518).

For crops of 640 set ``dataloader.crop_size``: the short side follows. Testing resizes the image to
fit 2048 x ``crop_size``; the model slides its window over it.
"""

from detectron2.config import LazyCall as L
from detectron2.data import transforms as T
from omegaconf import OmegaConf

from densedet.data import (
    LabelReader,
    PhotometricDistortion,
    ResizeToFit,
    SemanticMapper,
    build_test_loader,
    build_train_loader,
    get_records,
    register_ade20k,
)
from densedet.evaluation import OpenVocabularySemanticEvaluator

dataloader = OmegaConf.create()
dataloader.crop_size = 512
dataloader.num_classes = 150
dataloader.ignore_value = 255
dataloader.register = [L(register_ade20k)()]

dataloader.train = L(build_train_loader)(
    dataset=L(get_records)(names="ade20k_150_train", filter_empty=False),
    mapper=L(SemanticMapper)(
        is_train=True,
        augmentations=[
            L(ResizeToFit)(long=2048, short="${.....crop_size}", factors=[0.5, 2.0]),
            L(T.RandomCrop_CategoryAreaConstraint)(
                crop_type="absolute",
                crop_size=["${......crop_size}", "${......crop_size}"],
                single_category_max_area=0.75,
                ignored_category="${.....ignore_value}",
            ),
            L(T.RandomFlip)(prob=0.5, horizontal=True),
            L(PhotometricDistortion)(),
        ],
        num_classes="${...num_classes}",
        ignore_value="${...ignore_value}",
    ),
    total_batch_size=32,
    num_workers=4,
)

dataloader.test = L(build_test_loader)(
    dataset=L(get_records)(names="ade20k_150_val", filter_empty=False),
    mapper=L(SemanticMapper)(
        is_train=False,
        augmentations=[L(ResizeToFit)(long=2048, short="${.....crop_size}")],
        num_classes="${...num_classes}",
        ignore_value="${...ignore_value}",
    ),
    num_workers=4,
)

dataloader.evaluator = L(OpenVocabularySemanticEvaluator)(
    dataset_name="${..test.dataset.names}",
    sem_seg_loading_fn=L(LabelReader)(
        num_classes="${...num_classes}", ignore_value="${...ignore_value}"
    ),
    output_dir="${oc.select:train.output_dir,null}",
)
