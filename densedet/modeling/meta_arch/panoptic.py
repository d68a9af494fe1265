"""Open-vocabulary panoptic segmentation."""

from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from torch import Tensor, nn

from densedet.clip import ClassEmbeddings
from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.backbone import DENSE_FEATURE
from densedet.modeling.detection_limits import DetectionLimits
from densedet.modeling.image_sizes import without_padding
from densedet.modeling.mask_ensemble import MaskEnsemble
from densedet.modeling.meta_arch.rcnn import OpenVocabularyRCNN
from densedet.modeling.open_vocabulary_sem_seg_head import OpenVocabularySegmentationHead
from densedet.modeling.pasting import output_size, postprocess
from densedet.modeling.pixel_scores import PixelScores, enlarged
from densedet.vocabulary import Vocabulary

_WITHOUT = {"thing": "ZeroShotSegmentor", "stuff": "OpenVocabularyRCNN"}


@META_ARCH_REGISTRY.register()
class OpenVocabularyPanopticFPN(OpenVocabularyRCNN, PanopticFPN):
    """`PanopticFPN` (arXiv 1901.02446) whose two branches compare with a vocabulary.

    The instance branch knows the things of the vocabulary, the semantic branch all of it; where
    Detectron2's semantic branch has one class for all things, here the probabilities of the things
    are summed. Detectron2 combines the two results. All class indices, of labels and of results,
    are those of the vocabulary.

    Args:
        mask_ensemble: mixes the embedding of each segment in the dense map into its scores, in
            evaluation; None uses the heads alone.
        **kwargs: as of `OpenVocabularyRCNN` and `PanopticFPN`; ``roi_heads`` has masks, and
            ``sem_seg_head`` is an `OpenVocabularySegmentationHead`.

    Raises:
        ConfigError: heads without masks, an ensemble without a dense map, or two ensembles.
        VocabularyError: the vocabulary has no thing or no stuff.
    """

    proposal_generator: nn.Module
    sem_seg_head: OpenVocabularySegmentationHead

    def __init__(self, *, mask_ensemble: MaskEnsemble | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not self.roi_heads.mask_on:
            raise ConfigError("roi_heads has no mask branch, which panoptic segmentation needs")
        if mask_ensemble is not None and DENSE_FEATURE not in self.backbone.output_shape():
            raise ConfigError(
                "mask_ensemble needs the dense map of CLIP: set dense=True for the ClipBackbone"
            )
        if mask_ensemble is not None and self.roi_heads.box_predictor.ensemble is not None:
            raise ConfigError(
                "mask_ensemble and roi_heads.box_predictor.ensemble would both mix the dense map "
                "into the scores: set one of them to null"
            )
        self.mask_ensemble = mask_ensemble
        self.limits: DetectionLimits | None = None  # of the ensemble's scores; see `limited`

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Find these things and this stuff from now on; no weight changes.

        Raises:
            VocabularyError: there is no thing or no stuff among them.
        """
        kinds = vocabulary.kinds
        for kind, other in _WITHOUT.items():
            if kind not in kinds:
                raise VocabularyError(
                    f"the vocabulary of {len(vocabulary)} categories has no {kind}, and panoptic "
                    'segmentation needs things and stuff: set "kind" of the categories in a JSON '
                    f"vocabulary (the default is thing), or take {other}, which needs no {kind}"
                )
        self._things = tuple(i for i, kind in enumerate(kinds) if kind == "thing")
        self._stuff = tuple(i for i, kind in enumerate(kinds) if kind == "stuff")
        super().set_vocabulary(vocabulary)

    def set_classes(self, embeddings: ClassEmbeddings) -> None:
        """Hand the embeddings of the vocabulary to the two branches."""
        seen = self.vocabulary.seen
        things = _select(embeddings, self._things)
        self.roi_heads.set_classes(things, tuple(seen[i] for i in self._things))
        self.sem_seg_head.set_classes(embeddings, seen)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Losses in training, segmentations in evaluation.

        Args:
            batched_inputs: for each image a dict with "image" ``[3, H, W]`` RGB in 0..255; in
                training "sem_seg" ``[H, W]`` int64 and "instances", whose ``gt_classes`` are
                things; in evaluation "height" and "width" of the result, if they are not those of
                the image.

        Returns:
            A dict of scalars; or for each image "sem_seg", `PixelScores` ``[K, height, width]``
            (logits; with ``mask_ensemble`` log-probabilities), "instances" and "panoptic_seg" as of
            `PanopticFPN`.
        """
        if self.training:
            batched_inputs = [self._with_thing_ranks(x) for x in batched_inputs]
        return super().forward(batched_inputs)

    def _with_thing_ranks(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record with ``gt_classes`` as the instance branch counts: among the things."""
        instances = Instances(record["instances"].image_size, **record["instances"].get_fields())
        things = torch.tensor(self._things, device=instances.gt_classes.device)
        instances.gt_classes = torch.searchsorted(things, instances.gt_classes)
        return {**record, "instances": instances}

    def inference(  # type: ignore[override]  # PanopticFPN has no detected_instances either
        self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True
    ) -> Any:
        """As `PanopticFPN.inference`; embeds the vocabulary first if it is new."""
        self._embed_vocabulary()
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        logits = self.sem_seg_head.layers(features)
        proposals, _ = self.proposal_generator(images, features)
        instances, _ = self.roi_heads(images, features, proposals)
        stride = self.sem_seg_head.common_stride
        maps: list[PixelScores] = [
            enlarged(image, stride, size)
            for image, size in zip(
                without_padding(images.tensor, logits, stride), images.image_sizes, strict=True
            )
        ]
        if self.mask_ensemble is not None:
            maps = self._ensemble(self.mask_ensemble, features[DENSE_FEATURE], maps, instances)
            if self.limits is not None:
                instances = [self.limits.select(found) for found in instances]
        for found in instances:
            found.pred_classes = found.pred_classes.new_tensor(self._things)[found.pred_classes]
        if not do_postprocess:
            return instances, maps
        return [
            self._combine(scores, found, record)
            for scores, found, record in zip(maps, instances, batched_inputs, strict=True)
        ]

    def _ensemble(
        self,
        ensemble: MaskEnsemble,
        dense: Tensor,
        maps: list[PixelScores],
        instances: list[Instances],
    ) -> list[PixelScores]:
        """Mix the dense maps ``[B, D, h, w]`` into the semantic maps and the instances' scores."""
        stride = self.backbone.output_shape()[DENSE_FEATURE].stride
        detector = self.roi_heads.box_predictor.classifier
        for found, image in zip(instances, dense, strict=True):
            found.scores = ensemble.rescore(found, image, stride, detector)
        classifier = self.sem_seg_head.classifier
        return [
            ensemble.reclassify(scores, image, stride, classifier)
            for scores, image in zip(maps, dense, strict=True)
        ]

    def _combine(
        self, scores: PixelScores, instances: Instances, record: dict[str, Any]
    ) -> dict[str, Any]:
        """The result of one image, in its output size."""
        height, width = output_size(record, instances)
        semantic = scores.resized((height, width))
        found = postprocess(instances, height, width)
        panoptic, segments = combine_semantic_and_instance_outputs(
            found,
            self._stuff_ranks(semantic),
            self.combine_overlap_thresh,
            self.combine_stuff_area_thresh,
            self.combine_instances_score_thresh,
        )
        for segment in segments:
            if not segment["isthing"]:
                segment["category_id"] = self._stuff[segment["category_id"] - 1]
        return {"sem_seg": semantic, "instances": found, "panoptic_seg": (panoptic, segments)}

    def _stuff_ranks(self, scores: PixelScores) -> Tensor:
        """Scores ``[K, H, W]`` to labels ``[H, W]``: 0 for a thing, 1, 2, ... for stuff."""
        things = torch.tensor(self._things, device=scores.device)
        stuff = torch.tensor(self._stuff, device=scores.device)

        def rank(block: Tensor) -> tuple[Tensor]:
            all_things = block[..., things].logsumexp(dim=-1, keepdim=True)
            return (torch.cat([all_things, block[..., stuff]], dim=-1).argmax(dim=-1),)

        return scores.reduce(rank)[0]


def _select(embeddings: ClassEmbeddings, categories: tuple[int, ...]) -> ClassEmbeddings:
    """The embeddings of some categories (ascending), which are counted anew."""
    chosen = torch.tensor(categories, device=embeddings.groups.device)
    rows = torch.isin(embeddings.groups, chosen)
    groups = torch.searchsorted(chosen, embeddings.groups[rows])
    return ClassEmbeddings(embeddings.vectors[rows], groups, embeddings.background)
