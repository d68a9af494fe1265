"""A data set of your own, boxes in COCO's format: docs/custom_data.md says how it is laid out.

``custom.root`` is its folder. Of OV-COCO are the size of the pictures and the augmentations.
"""

from detectron2.config import LazyCall as L

from densedet.data import read_vocabulary, register_coco_format

from .ov_coco import dataloader

custom = dict(
    root="datasets/custom",
    train_json="${custom.root}/train.json",
    train_images="${custom.root}/train",
    val_json="${custom.root}/val.json",
    val_images="${custom.root}/val",
    # the categories of the annotations; or a vocabulary file with their synonyms and seen flags
    vocabulary="${custom.train_json}",
)

vocabulary = L(read_vocabulary)(path="${custom.vocabulary}")
# a category that the vocabulary calls unseen has no labels in training
dataloader.register = [
    L(register_coco_format)(
        name=f"custom_{part}",
        json_file=f"${{custom.{part}_json}}",
        image_root=f"${{custom.{part}_images}}",
        vocabulary=vocabulary,
        seen_only=part == "train",
    )
    for part in ("train", "val")
]
dataloader.train.dataset.names = "custom_train"
dataloader.test.dataset.names = "custom_val"
