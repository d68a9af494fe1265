"""Data sets in COCO format or with label maps, image reading, and mappers from record to input.

The names below are looked up when they are first used, so that the parts which need no Detectron2
(``shapes_world_scenes`` and ``shapes_world_render``) can be imported where it is absent.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densedet.data.ade20k_benchmarks import register_ade20k, register_ade20k_panoptic
    from densedet.data.benchmarks import register_all
    from densedet.data.catalog import get_records, read_vocabulary, register_coco_format
    from densedet.data.cityscapes import register_cityscapes
    from densedet.data.coco_benchmarks import register_coco_panoptic, register_coco_stuff_164k
    from densedet.data.coco_format import load_coco_format
    from densedet.data.detection_benchmarks import (
        register_coco_detection,
        register_objects365,
        register_open_vocabulary,
    )
    from densedet.data.images import read_image
    from densedet.data.loader import build_test_loader, build_train_loader
    from densedet.data.mapper import DetectionMapper
    from densedet.data.panoptic_format import load_panoptic_format, register_panoptic_format
    from densedet.data.panoptic_mapper import PanopticMapper
    from densedet.data.pascal import context_vocabulary, register_context, register_voc_20
    from densedet.data.region_images import (
        read_proposal_file,
        region_vocabulary,
        register_clipself,
        register_region_images,
    )
    from densedet.data.region_mapper import RegionMapper
    from densedet.data.region_truth import RegionTruthMapper
    from densedet.data.semantic_benchmarks import (
        ade20k_full_vocabulary,
        register_ade20k_full,
        register_coco_stuff10k,
    )
    from densedet.data.semantic_format import (
        load_semantic_format,
        register_semantic_format,
    )
    from densedet.data.semantic_mapper import LabelReader, SemanticMapper
    from densedet.data.shapes_world import register_shapes_world
    from densedet.data.transforms import (
        PhotometricDistortion,
        ResizeShortestEdge,
        ResizeToFit,
        large_scale_jitter,
        resize_longest_side,
    )

__all__ = [
    "DetectionMapper",
    "LabelReader",
    "PanopticMapper",
    "PhotometricDistortion",
    "RegionMapper",
    "RegionTruthMapper",
    "ResizeShortestEdge",
    "ResizeToFit",
    "SemanticMapper",
    "ade20k_full_vocabulary",
    "build_test_loader",
    "build_train_loader",
    "context_vocabulary",
    "get_records",
    "large_scale_jitter",
    "load_coco_format",
    "load_panoptic_format",
    "load_semantic_format",
    "read_image",
    "read_proposal_file",
    "read_vocabulary",
    "region_vocabulary",
    "register_ade20k",
    "register_ade20k_full",
    "register_ade20k_panoptic",
    "register_all",
    "register_cityscapes",
    "register_clipself",
    "register_coco_detection",
    "register_coco_format",
    "register_coco_panoptic",
    "register_coco_stuff10k",
    "register_coco_stuff_164k",
    "register_context",
    "register_objects365",
    "register_open_vocabulary",
    "register_panoptic_format",
    "register_region_images",
    "register_semantic_format",
    "register_shapes_world",
    "register_voc_20",
    "resize_longest_side",
]

_MODULES = {
    "DetectionMapper": "mapper",
    "LabelReader": "semantic_mapper",
    "PanopticMapper": "panoptic_mapper",
    "PhotometricDistortion": "transforms",
    "RegionMapper": "region_mapper",
    "RegionTruthMapper": "region_truth",
    "ResizeShortestEdge": "transforms",
    "ResizeToFit": "transforms",
    "SemanticMapper": "semantic_mapper",
    "ade20k_full_vocabulary": "semantic_benchmarks",
    "build_test_loader": "loader",
    "build_train_loader": "loader",
    "context_vocabulary": "pascal",
    "get_records": "catalog",
    "large_scale_jitter": "transforms",
    "load_coco_format": "coco_format",
    "load_panoptic_format": "panoptic_format",
    "load_semantic_format": "semantic_format",
    "read_image": "images",
    "read_proposal_file": "region_images",
    "read_vocabulary": "catalog",
    "region_vocabulary": "region_images",
    "register_ade20k": "ade20k_benchmarks",
    "register_ade20k_full": "semantic_benchmarks",
    "register_ade20k_panoptic": "ade20k_benchmarks",
    "register_all": "benchmarks",
    "register_cityscapes": "cityscapes",
    "register_clipself": "region_images",
    "register_coco_detection": "detection_benchmarks",
    "register_coco_format": "catalog",
    "register_coco_panoptic": "coco_benchmarks",
    "register_coco_stuff10k": "semantic_benchmarks",
    "register_coco_stuff_164k": "coco_benchmarks",
    "register_context": "pascal",
    "register_objects365": "detection_benchmarks",
    "register_open_vocabulary": "detection_benchmarks",
    "register_panoptic_format": "panoptic_format",
    "register_region_images": "region_images",
    "register_semantic_format": "semantic_format",
    "register_shapes_world": "shapes_world",
    "register_voc_20": "pascal",
    "resize_longest_side": "transforms",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
