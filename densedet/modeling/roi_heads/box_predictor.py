"""The open-vocabulary counterpart of Detectron2's `FastRCNNOutputLayers`."""

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Instances
from torch import Tensor, nn

from densedet.clip import ClassEmbeddings
from densedet.modeling.roi_heads.classifier import CosineClassifier, ScoreEnsemble


class OpenVocabularyBoxPredictor(FastRCNNOutputLayers):
    """Boxes by class-agnostic regression, classes by cosine with class embeddings.

    The box head of F-ViT (CLIPSelf, arXiv 2310.01403).

    Args:
        input_shape: channels of the box features.
        box2box_transform: as in Detectron2.
        classifier: compares region embeddings with classes.
        ensemble: mixes in the dense map at test time; None uses the head alone.
        background_weight: weight of background regions in the classification loss (seen classes
            have 1, unseen ones 0).
        class_relu: the class branch ends with a ReLU, as released weights need; False drops it.
        test_score_thresh, test_nms_thresh, test_topk_per_image, smooth_l1_beta: as in Detectron2.
    """

    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform: Box2BoxTransform,
        classifier: CosineClassifier,
        ensemble: ScoreEnsemble | None = None,
        background_weight: float = 1.0,
        class_relu: bool = True,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        smooth_l1_beta: float = 0.0,
    ) -> None:
        super().__init__(
            input_shape,
            box2box_transform=box2box_transform,
            num_classes=1,
            cls_agnostic_bbox_reg=True,
            test_score_thresh=test_score_thresh,
            test_nms_thresh=test_nms_thresh,
            test_topk_per_image=test_topk_per_image,
            smooth_l1_beta=smooth_l1_beta,
        )
        del self.cls_score
        channels = input_shape.channels * (input_shape.height or 1) * (input_shape.width or 1)
        self.classifier = classifier
        self.ensemble = ensemble
        self.background_weight = background_weight
        embed = nn.Linear(channels, classifier.embed_dim)
        self.class_branch = nn.Sequential(embed, nn.ReLU()) if class_relu else embed
        self.box_branch = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())

    def set_classes(self, embeddings: ClassEmbeddings, seen: tuple[bool, ...]) -> None:
        """Replace the classes; see `CosineClassifier.set_classes`."""
        self.classifier.set_classes(embeddings, seen)
        self.num_classes = len(seen)

    def forward(self, x: Tensor, dense: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Score and regress box features.

        Args:
            x: (R, ...) features of R regions.
            dense: (R, D) embeddings of the regions in the dense map, for the ensemble.

        Returns:
            Scores (R, K + 1), background last: logits in training, log-probabilities in evaluation;
            and box deltas (R, 4).
        """
        x = torch.flatten(x, start_dim=1)
        deltas = self.bbox_pred(self.box_branch(x))
        scores = self.classifier(self.class_branch(x))
        if self.training:
            return scores, deltas
        scores = F.log_softmax(scores, dim=1)
        if self.ensemble is not None and dense is not None:
            scores = self.ensemble(scores, dense, self.classifier)
        return scores, deltas

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[Tensor, ...]:
        """Per image (R_i, K + 1): the exponential of the scores."""
        return predictions[0].exp().split([len(p) for p in proposals])

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """``loss_cls`` (weighted cross-entropy) and Detectron2's ``loss_box_reg``."""
        logits, deltas = predictions
        labels = cat([p.gt_classes for p in proposals])
        proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
        # an image without annotation has no gt_boxes; its regions are all background
        truth = [p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes for p in proposals]
        truth_boxes = cat([boxes.tensor for boxes in truth])
        return {
            "loss_cls": self.classification_loss(logits, labels),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, truth_boxes, deltas, labels),
        }

    def classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with class weights, divided by the number of regions.

        The divisor is not the sum of the weights, unlike torch's weighted mean. Regions of unseen
        classes weigh nothing.
        """
        if not len(labels):
            return logits.sum() * 0.0
        weights = torch.cat([(~self.classifier.unseen).float(), logits.new_ones(1)])
        weights[-1] = self.background_weight
        weight = weights[labels]
        counted = torch.where(weight > 0, labels, self.num_classes)
        losses = F.cross_entropy(logits, counted, reduction="none")
        return (weight * losses).sum() / len(labels)
