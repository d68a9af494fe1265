"""RegionCLIP-style training of CLIP's dense map: boxes with pseudo-labels against class words.

The baseline that CLIPSelf (arXiv 2310.01403) compares itself with, after RegionCLIP (arXiv
2112.09106): no teacher looks at crops; a box is told by text which noun it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from densedet.clip import ClassEmbeddings, ClipVisual
from densedet.clip.precision import full_precision
from densedet.errors import ConfigError, DatasetError
from densedet.modeling.meta_arch.clipself import CLIPSelf
from densedet.regions import pool_boxes
from densedet.regions.crops import Backend, Padding, scale_boxes
from densedet.vocabulary import Vocabulary


@META_ARCH_REGISTRY.register()
class RegionCLIP(CLIPSelf):
    """A CLIP image tower that learns the labels of boxes from its own dense map.

    The loss is a federated binary cross-entropy: with f the unit vector that RoIAlign takes from
    the dense map and e_c those of the classes, the logits are ``logit_scale * f e_c``, for the
    classes that occur in the batch and others drawn at random; summed over these classes, averaged
    over the boxes. In several processes each has the classes and the boxes of its own part of the
    batch, as in the published code: the averaged gradients are not those of one process with all
    of it.

    Towers, student's image and evaluation are those of :class:`CLIPSelf`. The teacher is a frozen
    copy of the student at the start, which is never run: the interpolation of weights
    (:class:`densedet.engine.interpolation.WeightInterpolation`) needs it.

    Args:
        student: the tower that is trained.
        embedder: turns the vocabulary into class embeddings (a `VocabularyEmbedder`); called at the
            first loss, so that building a model costs no text tower.
        vocabulary: the classes of the labels, which are indices into it, e.g.
            ``Vocabulary.from_coco`` of the label file.
        student_size: side of the student's square image, in pixels; a multiple of the stride.
        logit_scale: factor of the cosines, a constant. CLIP's training caps its own at 100 (Radford
            et al., arXiv 2103.00020, section 2.5).
        negatives: classes of the loss in all, if fewer occur in the batch.
        crop_size, crop_padding: of the crops in evaluation, see :class:`CLIPSelf`.
        trainable, crop_backend, checkpointing, modes: see :class:`CLIPSelf`.
    """

    vectors: Tensor
    groups: Tensor

    def __init__(
        self,
        student: ClipVisual,
        embedder: Callable[[Vocabulary], ClassEmbeddings],
        vocabulary: Vocabulary,
        *,
        student_size: int,
        logit_scale: float = 100.0,
        negatives: int = 100,
        crop_size: int | None = None,
        trainable: int | Literal["all"] = "all",
        crop_padding: Padding = "centre",
        crop_backend: Backend = "auto",
        checkpointing: bool = False,
        modes: Sequence[str] = ("boxes", "masks"),
    ) -> None:
        super().__init__(
            student,
            student_size=student_size,
            crop_size=crop_size,
            trainable=trainable,
            crop_padding=crop_padding,
            crop_backend=crop_backend,
            checkpointing=checkpointing,
            modes=modes,
        )
        self.embedder = embedder
        # not `vocabulary`: an evaluation classifies regions in another one
        self.label_vocabulary = vocabulary
        self.logit_scale = logit_scale
        self.negatives = negatives
        empty = torch.zeros(0, student.embed_dim)
        self.register_buffer("vectors", empty, persistent=False)
        self.register_buffer("groups", torch.zeros(0, dtype=torch.int64), persistent=False)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return the loss in training, embeddings of regions in evaluation.

        Args:
            batched_inputs: as for :class:`CLIPSelf`; in training with "region_labels", of which
                negative ones mark boxes without a label.

        Returns:
            ``{"loss_region_clip": scalar}``, 0 if the batch has no label; in evaluation as
            :class:`CLIPSelf`.

        Raises:
            ConfigError: the samples have no labels.
            DatasetError: a label that the vocabulary does not have.
        """
        if not self.training:
            return super().forward(batched_inputs)
        boxes, labels = self._labelled_boxes(batched_inputs)
        self._embed_classes()  # in every process, with or without a label: buffers are shared
        dense = self.student.dense_map(self._student_images(batched_inputs))
        if not len(labels):
            return {"loss_region_clip": 0.0 * dense.sum()}
        classes = draw_classes(labels, self._num_classes, self.negatives)
        with full_precision(dense.device):
            regions = pool_boxes(dense.float(), boxes, self.student.stride)
            logits = self.logit_scale * self._cosines(F.normalize(regions, dim=1), classes)
            targets = (labels[:, None] == classes).to(logits)
            loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
        return {"loss_region_clip": loss / len(labels)}

    def _labelled_boxes(self, samples: list[dict[str, Any]]) -> tuple[list[Tensor], Tensor]:
        """Boxes of each image in pixels of the student's, and the labels of all, on the CPU."""
        boxes, labels = [], []
        for sample in samples:
            if "region_labels" not in sample:
                raise ConfigError(
                    "RegionCLIP needs the labels of the boxes, which these samples lack: take "
                    'BoxRegions(source="annotations") as the regions of the RegionMapper'
                )
            found = sample["region_labels"].cpu()
            if (found >= self._num_classes).any():
                raise DatasetError(
                    f"{sample.get('file_name', 'an image')} has the label {int(found.max())}, the "
                    f"vocabulary has {self._num_classes} classes; give RegionCLIP the categories "
                    "of the label file"
                )
            scaled = scale_boxes(
                sample["regions"], (sample["height"], sample["width"]), self.student_size
            )
            boxes.append(scaled[found >= 0])
            labels.append(found[found >= 0])
        return boxes, torch.cat(labels)

    @property
    def _num_classes(self) -> int:
        return len(self.label_vocabulary)

    def _embed_classes(self) -> None:
        if not len(self.vectors):
            embeddings = self.embedder(self.label_vocabulary).to(self.vectors.device)
            self.vectors, self.groups = embeddings.vectors, embeddings.groups

    def _cosines(self, regions: Tensor, classes: Tensor) -> Tensor:
        """[K, D], [C] -> [K, C]; of a class with several synonyms the closest."""
        column = torch.full((self._num_classes,), -1, device=regions.device)
        column[classes.to(regions.device)] = torch.arange(len(classes), device=regions.device)
        columns = column[self.groups]
        cosines = regions @ self.vectors[columns >= 0].T
        index = columns[columns >= 0].expand(len(regions), -1)
        start = cosines.new_zeros(len(regions), len(classes))
        return start.scatter_reduce(1, index, cosines, "amax", include_self=False)


def draw_classes(labels: Tensor, num_classes: int, total: int) -> Tensor:
    """The classes of a federated loss: those that occur, and others drawn without replacement.

    Args:
        labels: ``[K]`` int64, on the CPU.
        num_classes: size of the vocabulary.
        total: how many in all; more if more occur, fewer if there are fewer.

    Returns:
        Class indices, first those that occur, ascending; from torch's global generator of the CPU.
    """
    present = labels.unique()
    others = torch.ones(num_classes, dtype=torch.bool)
    others[present] = False
    candidates = others.nonzero()[:, 0]
    order = torch.randperm(len(candidates))[: max(0, total - len(present))]
    return torch.cat([present, candidates[order]])
