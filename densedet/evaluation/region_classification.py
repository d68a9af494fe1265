"""Zero-shot classification of ground-truth regions: what a dense map knows of each place.

The protocol of CLIPSelf (arXiv 2310.01403): a region is named by the cosine of its embedding with
the class embeddings; the accuracy of each class over all its regions, then the unweighted mean over
the classes that occur, separately for things and stuff.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from densedet.clip import ClassEmbeddings
from densedet.clip.precision import full_precision
from densedet.errors import ConfigError, DatasetError
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

TOP = 5


def mean_class_accuracy(hits: Tensor, labels: Tensor, num_classes: int) -> tuple[float, float]:
    """Mean over the classes that occur of the accuracy over all regions of a class.

    Args:
        hits: ``[N, k]`` bool, whether the i-th best class of a region is its label.
        labels: ``[N]`` int64.
        num_classes: C.

    Returns:
        (macc1, macc5) in 0..1: the best class is the label, and one of the k best is; NaN without
        any region. Class accuracies are not rounded to half precision as in the published code,
        which changes the mean by less than 3e-4.
    """
    total = torch.bincount(labels, minlength=num_classes)
    occurs = total > 0

    def mean(hit: Tensor) -> float:
        right = torch.bincount(labels[hit], minlength=num_classes)
        return (right[occurs].double() / total[occurs]).mean().item()

    return mean(hits[:, 0]), mean(hits.any(dim=1))


def class_scores(features: Tensor, embeddings: ClassEmbeddings, num_classes: int) -> Tensor:
    """Cosine of regions ``[N, D]`` with the best of each class's synonyms: ``[N, C]`` fp32."""
    unit = F.normalize(features.float(), dim=-1)
    with full_precision(unit.device):
        cosine = unit @ F.normalize(embeddings.vectors.to(unit.device), dim=-1).T
    scores = cosine.new_full((len(unit), num_classes), -torch.inf)
    groups = embeddings.groups.to(cosine.device).expand_as(cosine)
    return scores.scatter_reduce(1, groups, cosine, "amax")


class RegionClassificationEvaluator(DatasetEvaluator):
    """Classifies the regions of panoptic ground truth against the vocabulary of their data set.

    Inputs are the samples of :class:`densedet.data.RegionTruthMapper`, outputs the dicts of
    :func:`densedet.modeling.region_encoder.embed_regions`. Each image counts once, also where a
    loader repeats some on several processes. A region whose embedding is zero (a mask without
    cells) or not finite counts as wrong.

    :meth:`evaluate` returns ``{"regions": ...}`` in percent: "boxes_macc1" and "boxes_macc5" over
    things, and so on for each mode; over stuff "stuff_macc1" and "stuff_macc5" for the mode "masks"
    and "stuff_<mode>_macc1/5" for the others; and "mask_antialias", 0 or 1. NaN where no region of
    the kind occurs.

    Args:
        dataset_name: name in the catalogs; its metadata have the ``vocabulary``, things and stuff.
        embedder: makes the class embeddings, e.g. :class:`densedet.clip.VocabularyEmbedder`; their
            background is not used.
        modes: the outputs that are evaluated.
        scored_against: "all", every class as published, or "kind", only the classes of the region's
            own kind.
        mask_antialias: how the mapper makes mask cells; the published figures need it off.

    Raises:
        DatasetError: the data set has no vocabulary.
        ConfigError: unknown ``scored_against``.
    """

    def __init__(
        self,
        dataset_name: str,
        embedder: Callable[[Vocabulary], ClassEmbeddings],
        modes: Sequence[str] = ("boxes", "masks", "crops"),
        scored_against: Literal["all", "kind"] = "all",
        mask_antialias: bool = False,
    ) -> None:
        if scored_against not in ("all", "kind"):
            raise ConfigError(f"scored_against={scored_against!r}: choose 'all' or 'kind'")
        vocabulary = MetadataCatalog.get(dataset_name).get("vocabulary")
        if vocabulary is None:
            raise DatasetError(
                f"data set {dataset_name!r} is not registered with a vocabulary; register it with "
                "densedet.data.register_panoptic_format"
            )
        self.dataset_name = dataset_name
        self.vocabulary: Vocabulary = vocabulary
        self.embedder = embedder
        self.modes = tuple(modes)
        self.scored_against = scored_against
        self.mask_antialias = mask_antialias
        self._class_is_thing = torch.tensor([kind == "thing" for kind in vocabulary.kinds])
        self._embeddings: ClassEmbeddings | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the images so far."""
        self._images: dict[Any, tuple[Tensor, Tensor]] = {}

    def process(
        self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Tensor]]
    ) -> None:
        """Classify the regions of a batch of images.

        Raises:
            ConfigError: an output lacks one of the modes, or the mapper's antialiasing is not that
                of the evaluator.
        """
        if self._embeddings is None:
            self._embeddings = self.embedder(self.vocabulary).to("cpu")
        for sample, output in zip(inputs, outputs, strict=True):
            self._check(sample, output)
            if sample["image_id"] in self._images:
                continue
            labels = sample["labels"].cpu()
            features = torch.stack([output[mode].float().cpu() for mode in self.modes])
            hits = [self._hits(f, labels, self._embeddings) for f in features]
            self._images[sample["image_id"]] = labels, torch.stack(hits, dim=1)

    def _check(self, sample: dict[str, Any], output: dict[str, Tensor]) -> None:
        missing = [mode for mode in self.modes if mode not in output]
        if missing:
            raise ConfigError(
                f"the model gives no {', '.join(missing)} (it gives {', '.join(output)}); give the "
                "model and the evaluator the same modes"
            )
        if sample.get("mask_antialias", self.mask_antialias) != self.mask_antialias:
            raise ConfigError(
                f"mask_antialias={self.mask_antialias} in the evaluator, but "
                f"{not self.mask_antialias} in the mapper; give both the same"
            )

    def _hits(self, features: Tensor, labels: Tensor, embeddings: ClassEmbeddings) -> Tensor:
        """Whether the i-th best class is the label: ``[K, TOP]`` bool."""
        count = len(self.vocabulary)
        scores = class_scores(features, embeddings, count)
        if self.scored_against == "kind":
            other = self._class_is_thing[labels][:, None] != self._class_is_thing
            scores = scores.masked_fill(other, -torch.inf)
        best = scores.topk(min(TOP, count), dim=1).indices
        hits = F.pad(best == labels[:, None], (0, TOP - best.shape[1]))
        norms = features.norm(dim=1, keepdim=True)
        return hits & (norms > 0) & norms.isfinite()

    def evaluate(self) -> dict[str, dict[str, float]]:
        """The figures, on the main process; an empty dict on the others."""
        gathered = comm.gather(self._images)
        if not comm.is_main_process():
            return {}
        images: dict[Any, tuple[Tensor, Tensor]] = {}
        for part in gathered:
            images |= part
        repeated = sum(map(len, gathered)) - len(images)
        if repeated:
            logger.warning("%d images came from several processes; each counts once", repeated)
        nothing = torch.zeros(0, len(self.modes), TOP, dtype=torch.bool)
        labels = torch.cat([nothing.new_zeros(0).long(), *(part for part, _ in images.values())])
        hits = torch.cat([nothing, *(part for _, part in images.values())])
        self._log_protocol(len(images), labels)
        results = self._figures(hits, labels)
        logger.info("regions: %s", ", ".join(f"{k} {v:.2f}" for k, v in results.items()))
        return {"regions": {**results, "mask_antialias": float(self.mask_antialias)}}

    def _figures(self, hits: Tensor, labels: Tensor) -> dict[str, float]:
        results = {}
        thing = self._class_is_thing[labels]
        for m, mode in enumerate(self.modes):
            for kind, chosen in (("thing", thing), ("stuff", ~thing)):
                name = _figure_name(mode, kind)
                first, best = mean_class_accuracy(
                    hits[chosen, m], labels[chosen], len(self.vocabulary)
                )
                results[f"{name}_macc1"], results[f"{name}_macc5"] = 100 * first, 100 * best
        return results

    def _log_protocol(self, images: int, labels: Tensor) -> None:
        against = "all classes" if self.scored_against == "all" else "the classes of their own kind"
        logger.info(
            "region classification on %s: %d regions of %d images, %d of %d classes occur; regions "
            "are scored against %s; mask cells: bicubic, antialias %s",
            self.dataset_name,
            len(labels),
            images,
            len(labels.unique()),
            len(self.vocabulary),
            against,
            "on" if self.mask_antialias else "off",
        )


def _figure_name(mode: str, kind: str) -> str:
    """The published table's "stuff" column is that of masks."""
    if kind == "thing":
        return mode
    return "stuff" if mode == "masks" else f"stuff_{mode}"
