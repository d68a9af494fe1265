"""Open-vocabulary Panoptic FPN: an F-ViT with masks and a semantic branch that embeds pixels."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from densedet.modeling.mask_ensemble import MaskEnsemble
from densedet.modeling.meta_arch import OpenVocabularyPanopticFPN
from densedet.modeling.open_vocabulary_sem_seg_head import OpenVocabularySegmentationHead
from densedet.modeling.roi_heads import CosineClassifier


def make_panoptic(model, channels=256, strides=(4, 8, 16, 32), norm="SyncBN"):
    """Turn the node of an `OpenVocabularyRCNN` with masks into a panoptic one.

    Its ensemble mixes the dense map over the masks of segments instead of boxes. ``channels`` and
    ``strides`` are those of the levels p2, p3, ... of its pyramid.
    """
    model._target_ = OpenVocabularyPanopticFPN
    model.sem_seg_head = L(OpenVocabularySegmentationHead)(
        input_shape={
            f"p{i}": ShapeSpec(channels=channels, stride=stride)
            for i, stride in enumerate(strides, start=2)
        },
        conv_dims=128,
        common_stride=strides[0],
        loss_weight=0.5,
        norm=norm,
        dropout=0.0,
        ignore_value=255,
        classifier=L(CosineClassifier)(embed_dim="${clip.embed_dim}", temperature=50.0),
    )
    model.mask_ensemble = model.roi_heads.box_predictor.ensemble
    model.roi_heads.box_predictor.ensemble = None
    if model.mask_ensemble is not None:
        model.mask_ensemble._target_ = MaskEnsemble
    # of Detectron2's combination: overlap that drops an instance, least pixels of stuff, least
    # score of an instance
    model.update(
        combine_overlap_thresh=0.5,
        combine_stuff_area_thresh=4096,
        combine_instances_score_thresh=0.5,
    )
