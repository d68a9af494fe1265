"""The names of the data sets of `densedet.data.benchmarks`; no heavy import."""

NAMES = (
    "coco",
    "ov_coco",
    "ov_lvis",
    "coco_panoptic",
    "ade20k_150",
    "ade20k_panoptic",
    "ade20k_full",
    "coco_stuff_164k",
    "coco_stuff_10k",
    "voc_20",
    "context_59",
    "context_459",
    "cityscapes",
    "objects365",
)
